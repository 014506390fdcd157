//! What scripts/package.sh makes, as users get it: installed, started, upgraded, removed and purged on Debian 11, 12 and 13 with
//! systemd running, and the program where there is nothing else. Needs root: `make test-packages`.

#[path = "packages/machine.rs"]
mod machine;
#[path = "packages/names.rs"]
mod names;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use machine::Machine;
use names::Names;
use support::{
    backend::{Answer, Backend},
    otlp,
    program::{Ended, finish},
    pty::Pty,
    wait,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `make test-packages` names.
fn given(variable: &str) -> Result<PathBuf> {
    let path = env::var_os(variable).with_context(|| format!("{variable} is not set: make test-packages sets it"))?;
    ensure!(Path::new(&path).exists(), "{variable} names {}, which is not there", path.display());
    Ok(path.into())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = finish(command)?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// A folder with what a machine is to see: the packages, and the workload as a static program.
fn packages() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(given("MQSPAN_TEST_PACKAGES")?)? {
        let path = entry?.path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().context("a name")?))?;
        }
    }
    let workload = given("MQSPAN_TEST_STATIC_WORKLOAD")?;
    for program in ["workload", "orders"] {
        fs::copy(workload.with_file_name(program), folder.path().join(program))?;
    }
    Ok(folder)
}

/// The package as a later version with another default configuration.
fn next_version(packages: &Path) -> Result<()> {
    let unpacked = packages.join("next");
    let package = packages.join(format!("mqspan_{VERSION}_amd64.deb"));
    run("dpkg-deb", &["--raw-extract", text(&package)?, text(&unpacked)?])?;
    let control = unpacked.join("DEBIAN/control");
    let changed = fs::read_to_string(&control)?.replace(&format!("Version: {VERSION}"), "Version: 9.9.9");
    fs::write(&control, changed)?;
    let configuration = unpacked.join("etc/mqspan/mqspan.yaml");
    fs::write(&configuration, fs::read_to_string(&configuration)? + "# next\n")?;
    // Packed loosely: as tightly as the real one it takes a minute on a busy machine.
    run(
        "dpkg-deb",
        &["-Zgzip", "-z1", "--root-owner-group", "--build", text(&unpacked)?, text(&packages.join("next.deb"))?],
    )?;
    Ok(fs::remove_dir_all(unpacked)?)
}

/// What `check` says, and a command that is traced: of each machine.
fn works_on(machine: &Machine, program: &str) -> Result<()> {
    let said = machine.run(&[program, "--version"])?;
    for line in [format!("mqspan {VERSION}"), "target: x86_64-unknown-linux-gnu".into(), "features: static".into()] {
        ensure!(said.lines().any(|its| its == line), "no {line:?} in {said}");
    }
    let said = machine.run(&[program, "check"])?;
    ensure!(said.contains("mqspan run would work"), "{said}");
    let command = [program, "run", "--output=console", "--", "/packages/workload", "flat", "--calls", "3"];
    let ended = Ended::of(machine.try_run(&command)?).ok()?;
    let opened = ended.lines()?.into_iter().filter(|line| line.contains(r#"mq_open("/workload-missing", "#)).count();
    ensure!(opened == 3, "{opened} lines of 3 calls: {ended:?}");
    ended.said("0 lost")?;
    Ok(())
}

/// Prevents the program from loading the host's libraries to look a name up, which ends it where they are of another C library
/// than its own.
fn looks_up_names(machine: &Machine, program: &str) -> Result<()> {
    let options = ["run", "--signals=traces", "--endpoint=http://nowhere.local:4318", "--user=nobody"];
    let command = [&[program], &options[..], &["--", "/packages/workload", "flat", "--calls", "3"]].concat();
    let ended = Ended::of(machine.try_run(&command)?).ok()?;
    ended.said("nowhere.local")?;
    Ok(())
}

/// What became of the service's unit.
fn unit(machine: &Machine, property: &str) -> Result<String> {
    let said = machine.run(&["systemctl", "show", "--property", property, "--value", "mqspan.service"])?;
    Ok(said.trim().to_owned())
}

/// Prevents a package that leaves something behind, loses what its user wrote, or does not start.
fn life_cycle(root: &str) -> Result<()> {
    let packages = packages()?;
    next_version(packages.path())?;
    let machine = Machine::boot(&given(root)?, packages.path())?;
    let package = format!("/packages/mqspan_{VERSION}_amd64.deb");

    machine.run(&["dpkg", "--install", &package])?;
    works_on(&machine, "/usr/bin/mqspan")?;
    looks_up_names(&machine, "/usr/bin/mqspan")?;
    let verified = Ended::of(machine.try_run(&["systemd-analyze", "verify", "mqspan.service"])?).ok()?;
    ensure!(!verified.stderr.iter().any(|line| line.contains("mqspan")), "{verified:?}");
    ensure!(
        (unit(&machine, "ActiveState")?, unit(&machine, "UnitFileState")?) == ("inactive".into(), "disabled".into())
    );
    for path in ["/usr/share/man/man1/mqspan.1.gz", "/usr/share/bash-completion/completions/mqspan"] {
        ensure!(machine.path(path).is_file(), "{path}");
    }

    // It starts with what its user wrote.
    let configuration = machine.path("/etc/mqspan/mqspan.yaml");
    let written = "output: file:/var/log/mqspan/calls.json\nsignals: traces\ncall: mq_open\n";
    fs::write(&configuration, written)?;
    machine.run(&["systemctl", "enable", "--now", "mqspan.service"])?;
    ensure!(unit(&machine, "ActiveState")? == "active", "{}", machine.run(&["systemctl", "status", "mqspan.service"])?);
    machine.run(&["/packages/workload", "flat", "--calls", "2"])?;
    let calls = machine.path("/var/log/mqspan/calls.json");
    let span = |span: &otlp::Record<_>| span.attributes.contains_key("messaging.destination.name");
    wait::until("the spans of the service", || {
        let spans = otlp::spans(&calls).unwrap_or_default();
        Ok((spans.iter().filter(|its| span(its)).count() >= 2).then_some(()))
    })?;

    // Upgraded, it runs as the new program with the old configuration.
    let before = unit(&machine, "MainPID")?;
    machine.run(&["dpkg", "--force-confdef", "--force-confold", "--install", "/packages/next.deb"])?;
    ensure!(fs::read_to_string(&configuration)? == written, "the configuration is not its user's");
    ensure!(fs::read_to_string(configuration.with_extension("yaml.dpkg-dist"))?.ends_with("# next\n"));
    let state = (unit(&machine, "ActiveState")?, unit(&machine, "UnitFileState")?);
    ensure!(state == ("active".into(), "enabled".into()), "{state:?}");
    ensure!(unit(&machine, "MainPID")? != before, "it was not restarted");

    // Removed, it is gone with its links; what its user wrote stays.
    machine.run(&["dpkg", "--remove", "mqspan"])?;
    ensure!(unit(&machine, "ActiveState")? == "inactive" && unit(&machine, "LoadState")? == "not-found");
    ensure!(!machine.path("/usr/bin/mqspan").exists() && configuration.is_file());

    machine.run(&["dpkg", "--purge", "mqspan"])?;
    let left = machine.run(&["find", "/", "-xdev", "-name", "*mqspan*"])?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

#[test]
fn debian_11() -> Result<()> {
    life_cycle("MQSPAN_TEST_DEBIAN_11")
}

#[test]
fn debian_12() -> Result<()> {
    life_cycle("MQSPAN_TEST_DEBIAN_12")
}

#[test]
fn debian_13() -> Result<()> {
    life_cycle("MQSPAN_TEST_DEBIAN_13")
}

/// Prevents a first use that takes more than what the documents say: three commands, typed into a clean machine, and the calls of
/// a program are there. Recorded, with its times: target/tmp/first-use.cast.
#[test]
fn first_use() -> Result<()> {
    let packages = packages()?;
    let machine = Machine::boot(&given("MQSPAN_TEST_DEBIAN_12")?, packages.path())?;
    let mut shell = machine.command(&["bash", "--norc", "--noprofile", "-i"]);
    shell.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env("PS1", "# ");
    let mut pty = Pty::start(shell, 110, 40)?;
    let is_prompt = |screen: &str| screen.lines().last() == Some("# ") || screen.trim_end().ends_with("\n#");
    for (command, shows) in [
        (format!("apt-get install -y /packages/mqspan_{VERSION}_amd64.deb"), "Setting up mqspan"),
        ("mqspan check".into(), "mqspan run would work"),
        ("mqspan run -- /packages/orders --rounds 2 --pause 50".into(), "0 lost"),
    ] {
        pty.until("a prompt", is_prompt)?;
        pty.press(&format!("clear; {command}\n"))?;
        pty.until(&command, |screen| screen.contains(shows) && is_prompt(screen))?;
    }
    let screen = pty.screen();
    ensure!(screen.contains("mq_timedsend(\"/orders\"") && screen.contains("2 orders taken"), "{screen}");
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("first-use.cast"), pty.recording())?;
    pty.press("exit\n")?;
    pty.end().map(drop)
}

/// Prevents the .rpm from leaving something behind, or losing what its user wrote. No system that is built of .rpm is to be had
/// where these tests run: Debian's rpm unpacks it, and runs its scripts.
#[test]
fn rpm() -> Result<()> {
    let packages = packages()?;
    let machine = Machine::boot(&given("MQSPAN_TEST_DEBIAN_12")?, packages.path())?;
    let package = format!("/packages/mqspan-{VERSION}-1.x86_64.rpm");
    machine.run(&["rpm", "--install", "--nodeps", &package])?;
    works_on(&machine, "/usr/bin/mqspan")?;
    let configuration = machine.path("/etc/mqspan/mqspan.yaml");
    let written = "output: none\n";
    fs::write(&configuration, written)?;
    machine.run(&["systemctl", "enable", "--now", "mqspan.service"])?;
    let before = unit(&machine, "MainPID")?;
    machine.run(&["rpm", "--upgrade", "--force", "--nodeps", &package])?;
    ensure!(fs::read_to_string(&configuration)? == written, "the configuration is not its user's");
    ensure!(unit(&machine, "ActiveState")? == "active" && unit(&machine, "MainPID")? != before, "it was not restarted");
    machine.run(&["rpm", "--erase", "mqspan"])?;
    ensure!(unit(&machine, "ActiveState")? == "inactive" && !machine.path("/usr/bin/mqspan").exists());
    let left = machine.run(&["find", "/etc/systemd", "/usr", "-name", "*mqspan*"])?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// A machine with busybox and the program: no C library, no shell's profile, no /etc but what is given here.
fn bare(packages: &Path, files: &[(&str, &str)]) -> Result<Machine> {
    let root = packages.join("bare");
    for folder in ["bin", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(PathBuf::from(run("which", &["busybox"])?.trim()), root.join("bin/busybox"))?;
    let archive = packages.join(format!("mqspan-{VERSION}-linux-amd64.tar.gz"));
    let member = format!("mqspan-{VERSION}-linux-amd64/mqspan");
    run("tar", &["-xzf", text(&archive)?, "-C", text(&root.join("bin"))?, "--strip-components=1", &member])?;
    for (path, content) in files {
        fs::write(root.join(path), content)?;
    }
    Machine::start(&root, packages, &["/bin/busybox", "sleep", "10000"])
}

/// Prevents the static program from needing what only Debian has: Alpine's C library is another.
#[test]
fn alpine() -> Result<()> {
    let packages = packages()?;
    let machine = Machine::start(&given("MQSPAN_TEST_ALPINE")?, packages.path(), &["/bin/sleep", "10000"])?;
    let archive = format!("/packages/mqspan-{VERSION}-linux-amd64.tar.gz");
    machine.run(&["tar", "-xzf", &archive, "-C", "/tmp"])?;
    let program = format!("/tmp/mqspan-{VERSION}-linux-amd64/mqspan");
    works_on(&machine, &program)?;
    looks_up_names(&machine, &program)
}

/// Prevents the static program from needing anything at all of the system that it runs on.
#[test]
fn without_a_c_library() -> Result<()> {
    let packages = packages()?;
    works_on(&bare(packages.path(), &[])?, "/bin/mqspan")
}

/// Prevents a backend's name from being looked up by what /etc/nsswitch.conf says, which in a static program means to load
/// libraries of another C library: files and DNS are asked, whatever stands there.
#[test]
fn names_of_hosts() -> Result<()> {
    let packages = packages()?;
    let names = Names::start()?;
    let resolver = format!("nameserver {}\n", names.address());
    let files = [
        // By these no name is found.
        ("etc/nsswitch.conf", "hosts: none [NOTFOUND=return UNAVAIL=return]\npasswd: none [UNAVAIL=return]\n"),
        ("etc/hosts", "127.0.0.1 by-file.test\n"),
        ("etc/resolv.conf", resolver.as_str()),
        ("etc/passwd", "somebody:x:4711:4711::/:/bin/sh\n"),
    ];
    let machine = bare(packages.path(), &files)?;
    let backend = Backend::start(|_, _| Answer::Taken)?;
    for (name, protocol) in
        [("by-file.test", "http/protobuf"), ("by-dns.test", "http/protobuf"), ("by-dns.test", "grpc")]
    {
        let (endpoint, protocol) = (backend.endpoint().replace("127.0.0.1", name), format!("--protocol={protocol}"));
        let before = backend.taken().0.len();
        let command =
            ["/bin/mqspan", "run", "--signals=traces", &protocol, "--endpoint", &endpoint, "--user", "somebody"];
        let traced = ["--", "/packages/workload", "flat", "--calls", "3"];
        let ended = Ended::of(machine.try_run(&[&command[..], &traced].concat())?).ok()?;
        ensure!(backend.taken().0.len() == before + 3, "{endpoint} {protocol}: {ended:?}");
    }
    ensure!(names.asked().iter().any(|name| name == "by-dns.test"), "{:?}", names.asked());
    Ok(())
}

/// Prevents an image that does not start, or that trusts no authority's certificate.
#[test]
fn image() -> Result<()> {
    let packages = packages()?;
    let archive = packages.path().join(format!("mqspan-{VERSION}-image-amd64.tar"));
    let id = run("podman", &["pull", "--quiet", &format!("oci-archive:{}", archive.display())])?;
    let id = id.trim();
    let common =
        ["--runtime=runc", "run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];
    let rights =
        ["--cap-drop=all", "--cap-add=bpf", "--cap-add=perfmon", "--cap-add=sys_ptrace", "--cap-add=dac_read_search"];
    let rest = ["--security-opt=seccomp=unconfined", "--volume=/sys/kernel/tracing:/sys/kernel/tracing", id, "check"];
    let said = run("podman", &[&common[..], &rights, &rest].concat())?;
    ensure!(said.contains("mqspan run would work"), "{said}");
    let mounted = run("podman", &["image", "mount", id])?;
    let certificates = fs::read_to_string(Path::new(mounted.trim()).join("etc/ssl/certs/ca-certificates.crt"))?;
    ensure!(certificates.matches("BEGIN CERTIFICATE").count() > 50, "no certificates");
    run("podman", &["image", "unmount", id])?;
    run("podman", &["image", "rm", id]).map(drop)
}

/// Prevents a package for the other architecture with this one's program, and one that needs libraries.
#[test]
fn both_architectures() -> Result<()> {
    let packages = packages()?;
    // e_machine of elf(5).
    for (architecture, rpm, machine) in [("amd64", "x86_64", 62_u16), ("arm64", "aarch64", 183)] {
        let folder = packages.path().join(architecture);
        let package = packages.path().join(format!("mqspan_{VERSION}_{architecture}.deb"));
        run("dpkg-deb", &["--extract", text(&package)?, text(&folder)?])?;
        let program = folder.join("usr/bin/mqspan");
        let bytes = fs::read(&program)?;
        ensure!(bytes.get(18..20) == Some(&machine.to_le_bytes()[..]), "{architecture}: the program is another's");
        let headers = run("readelf", &["--program-headers", "--wide", text(&program)?])?;
        ensure!(!headers.contains("INTERP"), "{headers}");
        let archive = packages.path().join(format!("mqspan-{VERSION}-linux-{architecture}.tar.gz"));
        let member = format!("mqspan-{VERSION}-linux-{architecture}/mqspan");
        let unpacked = packages.path().join(format!("unpacked-{architecture}"));
        fs::create_dir(&unpacked)?;
        run("tar", &["-xzf", text(&archive)?, "-C", text(&unpacked)?, &member])?;
        ensure!(fs::read(unpacked.join(member))? == bytes, "{architecture}: archive and .deb differ");
        let package = packages.path().join(format!("mqspan-{VERSION}-1.{rpm}.rpm"));
        let said = run("rpm", &["--query", "--package", "--queryformat", "%{ARCH}", text(&package)?])?;
        ensure!(said == rpm, "{said}");
    }
    Ok(())
}

/// Prevents sums that do not fit, and a bill of materials that leaves out what licences ask to be named.
#[test]
fn sums_and_materials() -> Result<()> {
    let packages = packages()?;
    let mut sums = Command::new("sha256sum");
    sums.args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(packages.path());
    let output = finish(sums)?;
    ensure!(output.status.success(), "{output:?}");
    let listed = fs::read_to_string(packages.path().join("SHA256SUMS"))?;
    ensure!(listed.lines().count() == 9, "{listed}");
    let bill = fs::read(packages.path().join(format!("mqspan-{VERSION}.cdx.json")))?;
    let bill: serde_json::Value = serde_json::from_slice(&bill)?;
    let components = bill["components"].as_array().context("no components")?;
    for name in ["libbpf", "libelf-dev", "zlib1g-dev", "libc6-dev", "sqlite", "zstd", "uplot", "tokio"] {
        let its = components.iter().find(|component| component["name"] == name).with_context(|| name.to_owned())?;
        ensure!(its["version"].is_string() && its["licenses"][0]["expression"].is_string(), "{its}");
    }
    Ok(())
}
