use std::collections::HashMap;
use std::os::fd::AsRawFd;

use super::super::host::{Host, ticks};
use super::super::registry::Registry;
use super::files::ProcessFolder;
use super::*;
use crate::model::call::Call;
use crate::model::examples::example;

/// This process, as the kernel side would name it.
pub fn this_process() -> Subject {
    let pid = std::process::id();
    let stat = ProcessFolder::open(pid).unwrap().stat().unwrap();
    let started_ns = stat.started * (1_000_000_000 / ticks(1_000_000_000));
    let image = ImageKey { pid, started_ns, exec_id: 0 };
    Subject { image, local_pid: pid, uid: 0, environ_at: stat.environ_at }
}

/// The stage's answers until an image is introduced.
fn answers(prober: &Prober) -> Vec<Answer> {
    let mut answers = Vec::new();
    loop {
        let answer = prober.answer_until(Instant::now() + Duration::from_secs(60)).expect("no answer in a minute");
        answers.push(answer);
        if matches!(answers.last(), Some(Answer::Introduced(_))) {
            return answers;
        }
    }
}

/// A context that this process publishes, at the address of its header.
fn publish() -> &'static mut [u8] {
    let file = nix::sys::memfd::memfd_create("OTEL_CTX", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    let payload = [0x0a, 0x0f, 0x0a, 0x0d, 0x0a, 0x01, b'k', 0x12, 0x08, 0x0a, 0x06];
    let payload = [&payload[..], b"a text"].concat();
    nix::unistd::ftruncate(&file, 4096).unwrap();
    // SAFETY: a new mapping of a file that is long enough; nobody else writes to it.
    let mapped = unsafe {
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let at = libc::mmap(std::ptr::null_mut(), 4096, access, shared, file.as_raw_fd(), 0);
        std::slice::from_raw_parts_mut(at.cast::<u8>(), 4096)
    };
    mapped[..8].copy_from_slice(b"OTEL_CTX");
    mapped[8..12].copy_from_slice(&2u32.to_ne_bytes());
    mapped[12..16].copy_from_slice(&(payload.len() as u32).to_ne_bytes());
    let at = mapped.as_ptr() as u64 + 32;
    mapped[24..32].copy_from_slice(&at.to_ne_bytes());
    mapped[32..32 + payload.len()].copy_from_slice(&payload);
    mapped
}

/// Prevents this process's context from being missed, that of another image from being taken for it, what is being changed
/// from being read, and memory that is a file's from being touched.
#[test]
fn an_image_is_introduced() {
    let prober = Prober::start(true).unwrap();
    let subject = this_process();
    let inquiry = Inquiry { subject, environ: true, cgroup: true, shares_root: false, rival: None };
    let mapped = publish();
    let introduced = |inquiry: Inquiry| {
        assert!(prober.introduce(inquiry));
        answers(&prober)
    };
    let published = |answers: &[Answer]| answers.iter().any(|answer| matches!(answer, Answer::Published(..)));
    assert!(!published(&introduced(inquiry)), "its time is 0");
    assert_eq!(prober.counts.unreadable[Unreadable::Changing as usize].load(Ordering::Relaxed), 1);
    mapped[16..24].copy_from_slice(&7u64.to_ne_bytes());
    let told = introduced(inquiry);
    let [Answer::Facts(key, facts), Answer::Published(of, context), Answer::Introduced(whom)] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((key, of, whom), (&subject.image, &subject.image, &subject.image));
    assert_eq!(context.attributes.len(), 1, "{context:?}");
    assert!(facts.said.is_some() && facts.cgroup.is_some() && facts.owner.as_deref() == Some("root"), "{facts:?}");

    let mut later = inquiry;
    later.subject.environ_at += 8;
    later.subject.image.exec_id = 9;
    let told = introduced(later);
    assert!(matches!(told[..], [Answer::Ended(_), Answer::Introduced(_)]), "another image: {told:?}");
    later.shares_root = true;
    let told = introduced(later);
    let [Answer::Facts(_, facts), Answer::Ended(_), _] = &told[..] else { panic!("{told:?}") };
    assert_eq!(
        *facts,
        ImageFacts { owner: Some("root".into()), ..ImageFacts::default() },
        "its user is known all the same"
    );
    let mut invisible = inquiry;
    invisible.subject.local_pid = 0;
    assert!(!prober.introduce(invisible), "in no pid namespace that /proc shows");

    // The payload in a mapping of a file, whoever serves it.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    // SAFETY: a new mapping of a file, only read.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    mapped[24..32].copy_from_slice(&(at.addr() as u64).to_ne_bytes());
    assert!(!published(&introduced(inquiry)));
    assert_eq!(prober.counts.unreadable[Unreadable::Mapped as usize].load(Ordering::Relaxed), 1);
    // SAFETY: the mapping of this test, which nothing else uses.
    unsafe { libc::munmap(mapped.as_mut_ptr().cast(), mapped.len()) };
}

/// Prevents an image whose record was lost from having no more than its call says while it lives, and another process's
/// environment from being taken for its own.
#[test]
fn an_image_without_a_record_is_described() {
    let prober = Prober::start(false).unwrap();
    let subject = this_process();
    let mut comm = [0; 16];
    let name = std::fs::read("/proc/thread-self/comm").unwrap();
    comm.iter_mut().zip(name.trim_ascii_end()).for_each(|(to, byte)| *to = *byte);
    let call = Call { image: subject.image, local_pid: subject.local_pid, comm, ..example() };
    let described = |call: &Call| {
        assert!(prober.describe(&call.identity()));
        prober.answer_until(Instant::now() + Duration::from_secs(60)).expect("no answer")
    };
    let Answer::Described(image) = described(&call) else { panic!("nothing is said of it") };
    assert!(image.environ.is_some_and(|environ| environ.contains(&0)) && image.environ_at == subject.environ_at);
    assert_eq!(image.path, Some(std::env::current_exe().unwrap().into_os_string().into_encoded_bytes()));
    let Answer::Described(image) = described(&Call { comm: *b"another\0\0\0\0\0\0\0\0\0", ..call.clone() }) else {
        panic!("nothing is said of it")
    };
    assert_eq!((image.environ, image.environ_at), (None, 0), "it may be a later image's");
    let mut gone = call;
    gone.image.started_ns += 1_000_000_000;
    assert!(matches!(described(&gone), Answer::Introduced(_)));
    let mut registry = Registry::new(Host::default(), 0, HashMap::new());
    registry.add_bare(&gone.identity());
    assert_eq!(registry.take_evicted(), [gone.image]);
}
