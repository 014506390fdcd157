//! Processes that would hold up whoever looks at them. Each makes calls all the time, says `hostile` once it is so, and ends
//! with its stdin.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    fuse, kernel,
    publish::{self, Mapping},
};

const PAGE: usize = 4096;
/// As many mappings as a process may have (vm.max_map_count, 65,530), nearly.
const MAPPINGS: usize = 60_000;
const CALL_EVERY: Duration = Duration::from_millis(10);

/// In which way.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum How {
    /// What it publishes, and a library of its, are in a file whose pages never come
    Fuse,
    /// A thread holds the lock of its memory for ever
    Lock,
    /// It has 60,000 mappings of files
    Mappings,
    /// It publishes all the time
    Prctl,
    /// It publishes numbers that JSON does not have
    Numbers,
}

#[derive(clap::Args)]
pub struct Hostile {
    #[arg(value_enum)]
    how: How,

    /// An empty folder of its own
    folder: PathBuf,
}

pub fn run(options: &Hostile) -> Result<()> {
    let Hostile { how, folder } = options;
    let server = matches!(how, How::Fuse | How::Lock).then(|| fuse::mount(folder)).transpose()?;
    let context = publish::map(Mapping::Memfd)?;
    publish::publish(context, &publish::resource(&[("service.name", "hostile")]));
    let queue = CString::new("workload-hostile")?;
    let call = move || kernel::mq_open(queue.as_ptr().addr(), libc::O_RDONLY as u32, 0, 0);
    // Before it is hostile: a thread can't be started when the lock of its stack's memory is held.
    let (go, going) = mpsc::channel::<()>();
    let calls = thread::spawn(move || {
        if going.recv().is_err() {
            return;
        }
        loop {
            call();
            thread::sleep(CALL_EVERY);
        }
    });
    match how {
        How::Fuse => fuse(context, folder)?,
        How::Lock => lock(folder)?,
        How::Mappings => map_often()?,
        How::Prctl => {
            let context = context.expose_provenance();
            thread::spawn(move || {
                // What it takes of a CPU is not what it is hostile by.
                // SAFETY: lowers this thread's own priority.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
                loop {
                    let mapping = std::ptr::with_exposed_provenance_mut(context);
                    publish::publish(mapping, &publish::resource(&[("service.name", "hostile")]));
                }
            });
        }
        How::Numbers => {
            publish::publish(context, &publish::numbers());
        }
    }
    ensure!(!calls.is_finished() && go.send(()).is_ok(), "no calls");
    println!("hostile");
    io::stdout().flush()?;
    // A byte at a time: there may be no more memory for this process.
    while io::stdin().read(&mut [0])? > 0 {}
    drop(server);
    // Threads that waited in the file system may still be on their way.
    // SAFETY: ends this process; nothing runs after it.
    unsafe { libc::_exit(0) }
}

fn map(file: &File, protection: i32, offset: usize) -> Result<*mut u8> {
    // SAFETY: a new mapping of an open file, which stays until the process ends.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE;
        libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, file.as_raw_fd(), offset as libc::off_t)
    };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    Ok(at.cast())
}

/// The payload lies in the file, and the file is mapped as a library is.
fn fuse(context: *mut u8, folder: &Path) -> Result<()> {
    let file = File::open(folder.join("file"))?;
    let at = map(&file, libc::PROT_READ, 0)?;
    map(&file, libc::PROT_READ | libc::PROT_EXEC, PAGE)?;
    publish::point(context, at, 64);
    Ok(())
}

/// One thread reads a page that never comes; another maps the file in a way that has to wait for that page, and holds the
/// lock of all mappings meanwhile.
fn lock(folder: &Path) -> Result<()> {
    let path = folder.join("file");
    let (file, another) = (File::open(&path)?, File::open(&path)?);
    let at = map(&file, libc::PROT_READ, 0)?.expose_provenance();
    thread::spawn(move || {
        let at: *const u8 = std::ptr::with_exposed_provenance(at);
        // SAFETY: within the mapping.
        unsafe { at.read_volatile() }
    });
    // The page must be asked for first.
    thread::sleep(Duration::from_millis(200));
    let locker = thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(move || map(&another, libc::PROT_READ, 0).map(|at| at.addr()))?;
    thread::sleep(Duration::from_millis(200));
    ensure!(!locker.is_finished(), "the lock is not held: {:?}", locker.join());
    Ok(())
}

fn map_often() -> Result<()> {
    let file = File::open(std::env::current_exe()?).context("this program")?;
    for number in 0..MAPPINGS {
        // Not side by side in the file, so that no two of them become one.
        map(&file, libc::PROT_READ, number % 2 * 2 * PAGE)?;
    }
    Ok(())
}
