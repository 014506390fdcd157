//! Makes the pictures of the documents and of each screen, of the real program in a real terminal: `make pictures`. Needs root and tracefs.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{
    picture,
    program::{Mqspan, without_otel},
    pty::{self, Pty},
    wait,
};

/// The process of this name below a process.
fn child(of: u32, name: &str) -> Result<Pid> {
    let children = format!("/proc/{of}/task/{of}/children");
    let pids = wait::until(name, || {
        let pids = fs::read_to_string(&children)?;
        let is_it = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        Ok(pids.split_whitespace().find(is_it).map(str::to_owned))
    })?;
    Ok(Pid::from_raw(pids.parse()?))
}

/// The shop of the README whose biller hangs: what is full, who waits, what fails. Its processes are killed on drop.
struct HangingShop {
    shop: Child,
    others: Vec<Pid>,
}

impl HangingShop {
    fn start(mqspan: &Mqspan) -> Result<Self> {
        let mut command = Command::new(mqspan.path().with_file_name("orders"));
        command.args(["--rounds=100000", "--pause=10"]).stdin(Stdio::null());
        without_otel(&mut command);
        let shop = command.spawn().context("cargo build --workspace first")?;
        Ok(Self { shop, others: Vec::new() })
    }

    fn hang(&mut self) -> Result<()> {
        self.others = vec![child(self.shop.id(), "biller")?, child(self.shop.id(), "shipper")?];
        Ok(kill(self.others[0], Signal::SIGSTOP)?)
    }
}

impl Drop for HangingShop {
    fn drop(&mut self) {
        for other in &self.others {
            let _ = kill(*other, Signal::SIGKILL);
        }
        let _ = self.shop.kill();
        let _ = self.shop.wait();
        for queue in ["/orders", "/shipments"] {
            let _ = nix::mqueue::mq_unlink(queue);
        }
    }
}

/// `top` that looks at a shop that hangs.
fn view(mqspan: &Mqspan, columns: u16, rows: u16, environment: &[(&str, &str)]) -> Result<(Pty, HangingShop)> {
    let mut command = pty::command(mqspan.path(), ["top", "--queue=/orders", "--queue=/shipments", "--queue=/audit"]);
    command.envs(environment.iter().copied());
    let pty = Pty::start(command, columns, rows)?;
    pty.until("the view", |screen| screen.contains("mqspan top"))?;
    let mut shop = HangingShop::start(mqspan)?;
    pty.until("calls", |screen| screen.contains("/audit") && screen.contains("/shipments"))?;
    shop.hang()?;
    pty.until("a full queue", |screen| screen.contains("10/10") && screen.contains("1s"))?;
    Ok((pty, shop))
}

fn one_at_a_time() -> std::sync::MutexGuard<'static, ()> {
    static QUEUES: Mutex<()> = Mutex::new(());
    QUEUES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The pictures of the README: the queues, and the page of the one that is full.
#[test]
fn of_the_readme() -> Result<()> {
    let _queues = one_at_a_time();
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let (mut pty, _shop) = view(&mqspan, 110, 12, &[])?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    fs::write(folder.join("top.svg"), pty.picture(picture::svg))?;
    pty.resize(100, 24)?;
    pty.press("\r")?;
    println!("{}", pty.until_drawn("the queue's page", |screen| screen.contains("latest calls"))?);
    fs::write(folder.join("queue.svg"), pty.picture(picture::svg))?;
    pty.press("q")?;
    pty.end_well()
}

/// Each screen at the sizes that people have, with and without colour, on a dark and on a light desk: in target/tmp/screens,
/// for whoever looks at them.
#[test]
fn of_each_screen() -> Result<()> {
    let _queues = one_at_a_time();
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screens");
    fs::create_dir_all(&folder)?;
    for (looks, environment) in
        [("colour", &[][..]), ("plain", &[("NO_COLOR", "1")][..]), ("ascii", &[("TERM", "linux")])]
    {
        let (mut pty, _shop) = view(&mqspan, 80, 24, environment)?;
        let screens = [
            ("queues", "", "QUEUE"),
            ("queue", "\r", "latest calls"),
            ("calls", "c", "mq_timedsend(\"/orders"),
            ("call", "fk\r", "any key closes it"),
            ("processes", "xp", "orders"),
            ("help", "?", "Help"),
            ("sort", "x1s", "Sort by"),
        ];
        for (name, keys, holds) in screens {
            pty.press(keys)?;
            // Every resize is to another size: only then all is drawn anew.
            for (columns, rows) in [(200, 60), (60, 15), (80, 24)] {
                pty.resize(columns, rows)?;
                pty.until_drawn(name, |screen| screen.contains(holds))?;
                let path = folder.join(format!("{name}-{columns}x{rows}-{looks}"));
                fs::write(path.with_extension("svg"), pty.picture(picture::svg))?;
                if looks == "colour" {
                    let light = path.with_file_name(format!("{name}-{columns}x{rows}-light.svg"));
                    fs::write(light, pty.picture(picture::light_svg))?;
                }
            }
        }
        pty.press("q")?;
        pty.press("q")?;
        pty.end()?;
    }
    Ok(())
}
