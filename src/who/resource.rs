//! The Resource of a process image, from what the kernel and the process say. Looks nothing up but what is handed in.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use uuid::Uuid;

use super::bounds::{INSTANCE_ID, SERVICE_NAME, bounded};
use super::environment::{self, Said};
use super::host::{self, Host};
use super::process_context::Published;
use crate::model::call::{Image, ImageKey};
use crate::model::container::Container;
use crate::model::resource::{Resource, Value};
use crate::model::text::utf8;

/// The conventions' namespace for `service.instance.id` made from what identifies an instance.
const INSTANCE_NAMESPACE: Uuid = Uuid::from_u128(0x4d63009a_8d0f_11ee_aad7_4c796ed8e320);
/// The container's id.
pub const CONTAINER_ID: &str = "container.id";
/// The pod's id.
pub const POD_UID: &str = "k8s.pod.uid";

/// What the kernel shows: a process's own word for these is not taken.
const KERNELS: [&str; 4] = ["process.", "container.", "host.", "os."];

/// Which instance the Resource says it is.
pub fn instance_id(resource: &Resource) -> Option<&str> {
    resource.attributes.iter().find(|(key, _)| key == INSTANCE_ID)?.1.as_text()
}

/// What the Resource of an image is made of.
#[derive(Debug)]
pub struct Made<'a> {
    /// This host.
    pub host: &'a Host,
    /// By how much the time of day is ahead of CLOCK_BOOTTIME.
    pub boot_offset_ns: i64,
    /// What the kernel side recorded.
    pub image: &'a Image,
    /// What its environment says.
    pub said: &'a Said,
    /// What it has published.
    pub published: &'a Published,
    /// The name of its user.
    pub owner: Option<&'a str>,
    /// Its control group.
    pub cgroup: Option<String>,
    /// Whether it goes by the instance id that its environment names: forked workers inherit one.
    pub owns_id: bool,
}

impl Made<'_> {
    /// Makes the Resource.
    pub fn build(self) -> Resource {
        let Self { host, boot_offset_ns, image, said, published, owner, cgroup, owns_id } = self;
        let path = image.path.as_deref().map(utf8);
        let executable = match &path {
            Some(path) => path.rsplit('/').next().unwrap_or_default().to_owned(),
            None => utf8(&image.comm).into_owned(),
        };
        let own = own_attributes(said, published, owns_id);
        let named = |name: &str| own.iter().find(|(key, _)| *key == name).and_then(|(_, value)| value.as_text());
        let mut to = ResourceAttributes(Vec::with_capacity(20 + own.len()));
        to.text(SERVICE_NAME, named(SERVICE_NAME).map_or_else(|| format!("unknown_service:{executable}"), Into::into));
        to.text(INSTANCE_ID, named(INSTANCE_ID).map_or_else(|| made_instance_id(host, &image.key), Into::into));
        to.int("process.pid", image.key.pid);
        if image.vpid != image.key.pid {
            to.int("process.vpid", image.vpid);
        }
        to.int("process.parent_pid", image.parent_pid);
        to.text("process.executable.name", executable);
        if let Some(path) = path {
            to.text("process.executable.path", path.into_owned());
        }
        to.text("process.creation.time", creation_time(image.key.started_ns, boot_offset_ns));
        to.int("process.user.id", image.uid);
        if let Some(owner) = owner {
            to.text("process.owner", owner.to_owned());
        }
        if let Some(cgroup) = cgroup {
            let Container { id, pod_uid } = Container::of_path(&cgroup);
            to.text("process.linux.cgroup", cgroup);
            for (key, value) in [(CONTAINER_ID, id), (POD_UID, pod_uid)] {
                if let Some(value) = value {
                    to.text(key, value);
                }
            }
        }
        of_host(host, &mut to);
        to.0.extend(own.into_iter().filter(|(key, _)| !is_ours(key)).map(|(key, value)| (key.to_owned(), value)));
        // Its own attributes may follow the conventions of any version, unless there are none.
        Resource { has_schema: to.0.iter().all(|(key, _)| is_ours(key)), attributes: to.0, started_in: said.started_in }
    }
}

/// What the process says of itself, each key once, bounded: what it has published before its environment, and first of all
/// who it is.
fn own_attributes<'a>(said: &'a Said, published: &'a Published, owns_id: bool) -> Vec<(&'a str, Value)> {
    let published = published.attributes.iter().map(|(key, value)| (key.as_str(), value.clone()));
    let name = said.service_name.iter().map(|name| (SERVICE_NAME, name));
    let environment = name.chain(said.attributes.iter().map(|(key, value)| (key.as_str(), value)));
    let environment = environment.filter(|(key, _)| *key != INSTANCE_ID || owns_id);
    bounded(published.chain(environment.map(|(key, value)| (key, Value::Text(value.clone())))))
}

/// mqspan's own Resource on this host.
pub fn of_mqspan(host: &Host, service_name: Option<&str>, attributes: &[(String, String)]) -> Vec<(String, Value)> {
    let own = |name: &str| attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let mut to = ResourceAttributes(Vec::new());
    to.text(
        SERVICE_NAME,
        service_name.map(Into::into).or_else(|| own(SERVICE_NAME)).unwrap_or_else(|| "mqspan".into()),
    );
    to.text("service.version", own("service.version").unwrap_or_else(|| env!("CARGO_PKG_VERSION").into()));
    to.text(
        INSTANCE_ID,
        own(INSTANCE_ID).unwrap_or_else(|| {
            let (pid_namespace, pid, started) = host.own;
            let name = format!("{} mqspan {pid_namespace} {pid} {started}", host.boot_id);
            Uuid::new_v5(&INSTANCE_NAMESPACE, name.as_bytes()).to_string()
        }),
    );
    to.int("process.pid", std::process::id());
    of_host(host, &mut to);
    for (key, value) in attributes {
        if !to.0.iter().any(|(known, _)| known == key) {
            to.text(key, value.clone());
        }
    }
    to.0
}

fn of_host(host: &Host, to: &mut ResourceAttributes) {
    to.text("host.name", host.name.clone());
    if let Some(id) = &host.id {
        to.text("host.id", id.clone());
    }
    to.text("os.type", "linux".to_owned());
}

fn is_ours(key: &str) -> bool {
    [SERVICE_NAME, INSTANCE_ID, POD_UID].contains(&key) || KERNELS.iter().any(|prefix| key.starts_with(prefix))
}

/// What the image says of itself, as far as its environment was recorded.
pub fn said(image: &Image) -> Said {
    let Some(environ) = &image.environ else { return Said::default() };
    match image.environ_cut {
        // The last variable may be half: only what ends with its NUL counts.
        true => environment::read(&environ[..environ.iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1)]),
        false => environment::read(environ),
    }
}

/// The same for every image of a process, and for no other process of any host and boot.
fn made_instance_id(host: &Host, key: &ImageKey) -> String {
    let name = format!("{} {} {}", host.boot_id, key.pid, host::ticks(key.started_ns));
    Uuid::new_v5(&INSTANCE_NAMESPACE, name.as_bytes()).to_string()
}

/// ISO 8601, in milliseconds: the clocks' offset does not tell more.
fn creation_time(started_ns: u64, boot_offset_ns: i64) -> String {
    let wall = started_ns.saturating_add_signed(boot_offset_ns);
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(wall);
    Timestamp::try_from(at).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

struct ResourceAttributes(Vec<(String, Value)>);

impl ResourceAttributes {
    fn text(&mut self, key: &str, value: String) {
        self.0.push((key.into(), Value::Text(value)));
    }

    fn int(&mut self, key: &str, value: u32) {
        self.0.push((key.into(), Value::Int(value.into())));
    }
}
