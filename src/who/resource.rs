//! The Resource of a process image, from what the kernel and the process say. Looks nothing up but what is handed in.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use nix::time::ClockId;
use uuid::Uuid;

use super::environment::{self, Said};
use super::host::{self, Host};
use super::process_context::Published;
use crate::clock;
use crate::model::call::{Image, ImageKey};
use crate::model::container::Container;
use crate::model::resource::{Resource, Value};
use crate::model::text::utf8;

/// The conventions' namespace for `service.instance.id` made from what identifies an instance.
const INSTANCE_NAMESPACE: Uuid = Uuid::from_u128(0x4d63009a_8d0f_11ee_aad7_4c796ed8e320);
const INSTANCE_ID: &str = "service.instance.id";
const SERVICE_NAME: &str = "service.name";
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

/// Builds the Resource of an image. `is_taken` says which instance ids other
/// processes go by.
pub fn build(
    host: &Host,
    image: &Image,
    said: &Said,
    published: &Published,
    owner: Option<&str>,
    cgroup: Option<String>,
    is_taken: impl Fn(&str) -> bool,
) -> Resource {
    let path = image.path.as_deref().map(utf8);
    let executable = match &path {
        Some(path) => path.rsplit('/').next().unwrap_or_default().to_owned(),
        None => utf8(&image.comm).into_owned(),
    };
    let own = own_attributes(said, published, is_taken);
    let named = |name: &str| own.iter().find(|(key, _)| *key == name).and_then(|(_, value)| value.as_text());
    let mut to = Attributes(Vec::with_capacity(20 + own.len()));
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
    to.text("process.creation.time", creation_time(image.key.started_ns));
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

/// What the process says of itself, each key once, bounded: what it has published before its environment, and first of all
/// who it is.
fn own_attributes<'a>(
    said: &'a Said,
    published: &'a Published,
    is_taken: impl Fn(&str) -> bool,
) -> Vec<(&'a str, Value)> {
    let published = published.attributes.iter().map(|(key, value)| (key.as_str(), value.clone()));
    let name = said.service_name.iter().map(|name| (SERVICE_NAME, name));
    let environment = name.chain(said.attributes.iter().map(|(key, value)| (key.as_str(), value)));
    // Forked workers inherit an instance's id with the environment.
    let environment = environment.filter(|(key, value)| *key != INSTANCE_ID || !is_taken(value));
    let said: Vec<(&str, Value)> = published
        .chain(environment.map(|(key, value)| (key, Value::Text(value.clone()))))
        .filter(|(key, value)| {
            ![SERVICE_NAME, INSTANCE_ID].contains(key) || value.as_text().is_some_and(|text| !text.is_empty())
        })
        .collect();
    let (names, rest): (Vec<_>, Vec<_>) =
        said.into_iter().partition(|(key, _)| [SERVICE_NAME, INSTANCE_ID].contains(key));
    let mut own: Vec<(&str, Value)> = Vec::new();
    let mut bytes = 0;
    for (key, value) in names.into_iter().chain(rest) {
        let len = key.len() + value.as_text().map_or(8, str::len);
        let has_room = own.len() < environment::MOST && bytes + len <= environment::MOST_BYTES;
        if has_room && own.iter().all(|(known, _)| *known != key) {
            bytes += len;
            own.push((key, value));
        }
    }
    own
}

/// mqspan's own Resource on this host.
pub fn of_mqspan(host: &Host, service_name: Option<&str>, attributes: &[(String, String)]) -> Vec<(String, Value)> {
    let own = |name: &str| attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let mut to = Attributes(Vec::new());
    to.text(
        SERVICE_NAME,
        service_name.map(Into::into).or_else(|| own(SERVICE_NAME)).unwrap_or_else(|| "mqspan".into()),
    );
    to.text("service.version", own("service.version").unwrap_or_else(|| env!("CARGO_PKG_VERSION").into()));
    to.text(
        INSTANCE_ID,
        own(INSTANCE_ID).unwrap_or_else(|| {
            Uuid::new_v5(&INSTANCE_NAMESPACE, format!("{} mqspan {}", host.boot_id, std::process::id()).as_bytes())
                .to_string()
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

fn of_host(host: &Host, to: &mut Attributes) {
    to.text("host.name", host.name.clone());
    if let Some(id) = &host.id {
        to.text("host.id", id.clone());
    }
    to.text("os.type", "linux".to_owned());
}

fn is_ours(key: &str) -> bool {
    [SERVICE_NAME, INSTANCE_ID, POD_UID].contains(&key) || KERNELS.iter().any(|prefix| key.starts_with(prefix))
}

/// What the image says of itself.
pub fn said(image: &Image) -> Said {
    let Some(environ) = &image.environ else { return Said::default() };
    let whole = if image.environ_cut { host::whole_environment(&image.key, environ) } else { None };
    // Without the whole, the last variable may be half: only what ends with its NUL counts.
    let complete = || &environ[..environ.iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1)];
    environment::read(whole.as_deref().unwrap_or_else(complete))
}

/// The same for every image of a process, and for no other process of any host and boot.
fn made_instance_id(host: &Host, key: &ImageKey) -> String {
    let name = format!("{} {} {}", host.boot_id, key.pid, host::ticks(key.started_ns));
    Uuid::new_v5(&INSTANCE_NAMESPACE, name.as_bytes()).to_string()
}

/// ISO 8601, in milliseconds: the clocks' offset does not tell more.
fn creation_time(started_ns: u64) -> String {
    let wall = started_ns.saturating_add_signed(clock::offset_ns(ClockId::CLOCK_BOOTTIME));
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(wall);
    Timestamp::try_from(at).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

struct Attributes(Vec<(String, Value)>);

impl Attributes {
    fn text(&mut self, key: &str, value: String) {
        self.0.push((key.into(), Value::Text(value)));
    }

    fn int(&mut self, key: &str, value: u32) {
        self.0.push((key.into(), Value::Int(value.into())));
    }
}
