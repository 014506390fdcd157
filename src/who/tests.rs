use super::resource::{build, instance_id};
use super::*;
use crate::model::examples::example;
use crate::model::resource::Value;

fn key(pid: u32) -> ImageKey {
    ImageKey { pid, started_ns: 5_000_000_000, exec_id: 1 }
}

fn call(pid: u32) -> Call {
    Call { image: key(pid), tid: pid, uid: 1000, comm: *b"worker\0\0\0\0\0\0\0\0\0\0", ..example() }
}

fn image(pid: u32, environ: &[u8]) -> Image {
    Image {
        local_pid: 0,
        key: key(pid),
        vpid: 7,
        parent_pid: 3,
        path: Some(b"/usr/bin/bill\xff".to_vec()),
        environ: Some(environ.into()),
        environ_at: 0,
        environ_cut: false,
        uid: 1000,
        cgroup: Some(b"/x".to_vec()),
        comm: b"worker".to_vec(),
    }
}

fn host() -> Host {
    Host { name: "h".into(), id: None, boot_id: "b".into() }
}

fn text<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
    resource.attributes.iter().find_map(|(known, value)| match value {
        Value::Text(text) if known == key => Some(&**text),
        _ => None,
    })
}

fn built(environ: &[u8]) -> Resource {
    let image = image(99, environ);
    build(&host(), &image, &resource::said(&image), &Published::default(), Some("bo"), Some("/x".into()), |_| false)
}

/// Prevents a process from claiming what only the kernel can show, and its own word from being left out elsewhere.
#[test]
fn the_kernel_wins_where_it_shows() {
    let said =
        built(b"OTEL_RESOURCE_ATTRIBUTES=process.pid=1,host.name=evil,k8s.pod.uid=p,team=a,service.namespace=n\0");
    assert_eq!(text(&said, "service.name"), Some("unknown_service:bill\\xff"));
    assert_eq!(text(&said, "host.name"), Some("h"));
    assert_eq!(text(&said, "k8s.pod.uid"), None);
    assert_eq!((text(&said, "team"), text(&said, "service.namespace")), (Some("a"), Some("n")));
    assert!(said.attributes.contains(&("process.pid".into(), Value::Int(99))));
    assert!(said.attributes.contains(&("process.vpid".into(), Value::Int(7))));
    assert!(!said.has_schema && built(b"").has_schema);
    let mut keys: Vec<_> = said.attributes.iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), said.attributes.len(), "each key once");
}

/// Prevents forked workers, which inherit an instance id, from being taken for one instance, and a program that was
/// started anew from losing its own.
#[test]
fn an_inherited_instance_id_is_not_believed() {
    let environ = b"OTEL_RESOURCE_ATTRIBUTES=service.instance.id=one\0";
    let mut registry = Registry::new(host());
    let living = std::process::id();
    let started_ns = host::started_ns(living).unwrap();
    let mut this = call(living);
    this.image.started_ns = started_ns;
    let mut this_image = image(living, environ);
    this_image.key = this.image;
    for (call, image) in [(call(u32::MAX), image(u32::MAX, environ)), (this.clone(), this_image)] {
        registry.add(image);
        assert_eq!(instance_id(&registry.resource(call.image)), Some("one"), "nobody else that lives says so");
    }
    registry.add(image(99, environ));
    let second = registry.resource(key(99));
    assert!(instance_id(&second).is_some_and(|id| id != "one" && id.len() == 36));
    assert_eq!(instance_id(&registry.resource(this.image)), Some("one"));
}

/// Prevents an image whose record was lost from having no Resource, or from growing one that changes later.
#[test]
fn an_unknown_image_has_what_its_call_says() {
    let mut registry = Registry::new(host());
    let gone = call(u32::MAX);
    registry.add_from_proc(&gone);
    let resource = registry.resource(gone.image);
    assert_eq!(text(&resource, "service.name"), Some("unknown_service:worker"));
    registry.add(image(u32::MAX, b"OTEL_SERVICE_NAME=late\0"));
    assert_eq!(registry.resource(gone.image), resource);
}

/// Prevents the registry from growing with every process that ever made a call.
#[test]
fn the_registry_is_bounded() {
    let mut images = Generations::default();
    for pid in 0..10 * GENERATION as u32 {
        images.put(key(pid), pid);
        assert_eq!(images.get(&key(0)), Some(&0), "what is used stays");
    }
    assert!(images.young.len() + images.old.len() <= 2 * GENERATION);
    assert_eq!(images.get(&key(1)), None);
}

fn with(environ: &[u8], published: &[(&str, &str)]) -> Resource {
    let image = image(99, environ);
    let attributes = published.iter().map(|(key, value)| ((*key).to_owned(), Value::Text((*value).into()))).collect();
    build(&host(), &image, &resource::said(&image), &Published { attributes }, None, None, |_| true)
}

/// Prevents a process's environment, which it may have inherited, from winning over what it publishes, a hostile list
/// from hiding who it is, and either from growing a Resource without end.
#[test]
fn what_is_published_comes_first() {
    let environ = b"OTEL_SERVICE_NAME=env\0OTEL_RESOURCE_ATTRIBUTES=team=a,zone=z,service.instance.id=inherited\0";
    let name = ("service.name", "context");
    let both = with(environ, &[name, ("team", "b"), ("service.instance.id", "one"), ("host.name", "evil")]);
    for (key, expected) in
        [("service.name", "context"), ("service.instance.id", "one"), ("team", "b"), ("zone", "z"), ("host.name", "h")]
    {
        assert_eq!(text(&both, key), Some(expected), "{key}");
    }
    let unnamed = with(environ, &[("service.name", ""), ("team", "b")]);
    assert_eq!(text(&unnamed, "service.name"), Some("env"));
    assert_ne!(instance_id(&unnamed), Some("inherited"), "another process says so");
    let long = "x".repeat(3000);
    let hostile = with(environ, &[("a", &long), ("b", &long), name]);
    assert_eq!(text(&hostile, "service.name"), Some("context"));
    assert_eq!((text(&hostile, "a").map(str::len), text(&hostile, "b")), (Some(3000), None));
    let keys: Vec<String> = (0..100).map(|number| format!("k{number}")).collect();
    let many = with(b"", &keys.iter().map(|key| (key.as_str(), "v")).collect::<Vec<_>>());
    assert_eq!(many.attributes.iter().filter(|(key, _)| key.starts_with('k')).count(), 64);
}

/// Prevents a publication from being taken for another image's, and one that says the same from making another Resource.
#[test]
fn a_publication_replaces_a_resource() {
    let mut registry = Registry::new(host());
    let published = |name: &str| Published { attributes: vec![("service.name".into(), Value::Text(name.into()))] };
    assert!(!registry.publish(key(99), published("early")), "nobody has asked for it");
    registry.add(image(99, b""));
    assert!(!registry.publish(key(99), published("one")), "its first call has not come");
    let first = registry.resource(key(99));
    assert_eq!(text(&first, "service.name"), Some("one"));
    assert!(!registry.publish(key(99), published("one")));
    assert!(registry.publish(key(99), published("two")));
    let later = ImageKey { exec_id: 2, ..key(99) };
    registry.add(Image { key: later, ..image(99, b"") });
    assert_eq!(text(&registry.resource(later), "service.name"), Some("unknown_service:bill\\xff"));
    assert_eq!(text(&registry.resource(key(99)), "service.name"), Some("two"));
}
