use super::super::resource::instance_id;
use super::*;
use crate::model::call::Call;
use crate::model::examples::example;

fn key(pid: u32) -> ImageKey {
    ImageKey { pid, started_ns: 5_000_000_000, exec_id: 1 }
}

fn call(pid: u32) -> Call {
    Call { image: key(pid), tid: pid, uid: 1000, comm: *b"worker\0\0\0\0\0\0\0\0\0\0", ..example() }
}

fn image(pid: u32, environ: &[u8]) -> Image {
    Image {
        key: key(pid),
        vpid: 7,
        local_pid: pid,
        parent_pid: 3,
        path: Some(b"/usr/bin/bill\xff".to_vec()),
        environ: Some(environ.into()),
        environ_at: 0,
        environ_cut: false,
        uid: 1000,
        cgroup: Some(b"/x".to_vec()),
        comm: b"worker".to_vec(),
        root: Root::default(),
    }
}

fn host() -> Host {
    Host { name: "h".into(), boot_id: "b".into(), ..Host::default() }
}

fn registry() -> Registry {
    Registry::new(host(), 0, HashMap::new())
}

/// As [`Registry::add`] and then [`Registry::resource`], of an image about which there is nothing to find out.
fn first_call(registry: &mut Registry, image: Image) -> Arc<Resource> {
    let key = image.key;
    registry.add(image);
    registry.resource(key)
}

fn made(image: &Image, published: &Published, owns_id: bool) -> Resource {
    let said = &resource::said(image);
    let (owner, cgroup) = (Some("bo"), Some("/x".into()));
    Made { host: &host(), boot_offset_ns: 0, image, said, published, owner, cgroup, owns_id }.build()
}

fn text<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
    resource.attributes.iter().find_map(|(known, value)| match value {
        Value::Text(text) if known == key => Some(&**text),
        _ => None,
    })
}

fn built(environ: &[u8]) -> Resource {
    made(&image(99, environ), &Published::default(), true)
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
    let mut registry = registry();
    let (parent, worker, restarted) = (image(1, environ), image(2, environ), image(3, environ));
    assert_eq!(registry.add(parent.clone()).unwrap().rival, None);
    assert_eq!(instance_id(&registry.resource(key(1))), Some("one"));
    // The prober is to see whether the one that says so still lives; here it does.
    assert_eq!(registry.add(worker).unwrap().rival, Some(Subject::of(&parent)));
    let of_worker = registry.resource(key(2));
    assert!(instance_id(&of_worker).is_some_and(|id| id != "one" && id.len() == 36));
    let next = ImageKey { exec_id: 2, ..key(1) };
    assert_eq!(registry.add(Image { key: next, ..parent }).unwrap().rival, None, "the process itself");
    assert_eq!(instance_id(&registry.resource(next)), Some("one"));
    registry.ended(&key(1));
    assert_eq!(registry.add(restarted).unwrap().rival.map(|rival| rival.image), Some(next));
    registry.ended(&next);
    assert_eq!(instance_id(&registry.resource(key(3))), Some("one"), "nobody else that lives says so");
    assert_eq!(registry.resource(key(2)), of_worker);
}

/// Prevents an image whose record was lost from having no Resource, from growing one that changes later, and from being known
/// by its call alone where its record or /proc's word comes in time.
#[test]
fn an_unknown_image_has_what_its_call_says() {
    let mut registry = registry();
    registry.add_bare(&call(1).identity());
    assert_eq!(registry.take_evicted(), [key(1)], "it is to be sent again");
    let resource = registry.resource(key(1));
    assert_eq!(text(&resource, "service.name"), Some("unknown_service:worker"));
    assert_eq!(registry.add(image(1, b"OTEL_SERVICE_NAME=late\0")), None);
    assert_eq!(registry.resource(key(1)), resource);

    registry.add_bare(&call(2).identity());
    assert!(registry.knows(&key(2)));
    assert!(registry.add(image(2, b"OTEL_SERVICE_NAME=early\0")).is_some());
    assert_eq!(registry.add(image(2, b"OTEL_SERVICE_NAME=again\0")), None);
    assert_eq!(text(&registry.resource(key(2)), "service.name"), Some("early"));
    assert_eq!(registry.resource(key(3)).attributes, []);
}

/// Prevents an image that others have pushed out from coming back as another: the kernel side sends it again, and what may
/// have changed since its first call is as it was.
#[test]
fn an_evicted_image_comes_back_as_it_was() {
    let (environ, mut registry) = (b"OTEL_RESOURCE_ATTRIBUTES=service.name=a,service.instance.id=one\0", registry());
    let before = first_call(&mut registry, image(7, environ));
    let mut pid = 100;
    while registry.knows(&key(7)) {
        first_call(&mut registry, image(pid, b"OTEL_SERVICE_NAME=x\0"));
        pid += 1;
    }
    assert!(pid > 2000, "{pid}");
    assert!(registry.take_evicted().contains(&key(7)));
    first_call(&mut registry, image(8, environ));
    let again = Image { uid: 0, parent_pid: 1, comm: b"renamed".to_vec(), ..image(7, environ) };
    assert_eq!(first_call(&mut registry, again), before);
}

/// Prevents the incident of 9,000 processes that make a call between two calls of one, and hostile ones with long
/// environments or contexts: the registry stays within its bounds, and those of other users stay.
#[test]
fn hostile_images() {
    let mut registry = registry();
    let attributes: String = (0..60).map(|number| format!("key{number}={},", "v".repeat(55))).collect();
    let environ = format!("OTEL_RESOURCE_ATTRIBUTES={attributes}\0");
    let long = Published { attributes: vec![("k".into(), Value::Text("v".repeat(4000)))] };
    let others: Vec<_> =
        (1..=20).map(|pid| first_call(&mut registry, image(pid, b"OTEL_SERVICE_NAME=mine\0"))).collect();
    for pid in 1000..10_000 {
        first_call(&mut registry, Image { uid: 2000, path: Some(vec![b'x'; 1000]), ..image(pid, environ.as_bytes()) });
        registry.publish(&key(pid), long.clone());
        assert!(registry.seeds.bytes() <= SEEDS && registry.resources.bytes() <= RESOURCES);
        assert!(registry.evicted.len() <= EVICTED);
    }
    for (pid, before) in (1..).zip(&others) {
        assert!(registry.knows(&key(pid)), "{pid}");
        assert!(Arc::ptr_eq(&registry.resource(key(pid)), before), "{pid}");
    }
}

/// Prevents what the prober finds out from being left out, and the recorded control group from being lost where it finds none.
#[test]
fn facts() {
    let mut registry = registry();
    let cut = Image { environ_cut: true, cgroup: Some(b"/".to_vec()), ..image(1, b"OTEL_SERVICE_NAME=ha") };
    let inquiry = registry.add(cut).unwrap();
    assert!(inquiry.environ && inquiry.cgroup && inquiry.subject.image == key(1));
    let said = crate::who::environment::read(b"OTEL_SERVICE_NAME=half\0");
    assert!(!registry.learn(&key(1), ImageFacts { said: Some(said), cgroup: None, owner: Some("bo".into()) }));
    let resource = registry.resource(key(1));
    for (key, expected) in [("service.name", "half"), ("process.owner", "bo"), ("process.linux.cgroup", "/")] {
        assert_eq!(text(&resource, key), Some(expected));
    }
    assert!(
        registry.learn(&key(1), ImageFacts { cgroup: Some("/late".into()), ..ImageFacts::default() }),
        "it was in use"
    );
    let inquiry = registry.add(image(2, b"")).unwrap();
    assert!(!inquiry.environ && !inquiry.cgroup);
}

/// Prevents creation times from staying in 1970 once the clock was set.
#[test]
fn a_clock_that_is_set() {
    let mut registry = registry();
    let before = first_call(&mut registry, image(1, b""));
    assert_eq!(text(&before, "process.creation.time"), Some("1970-01-01T00:00:05.000Z"));
    assert_eq!(registry.clock_stepped(1_700_000_000_000_000_000), [key(1)]);
    let after = registry.resource(key(1));
    assert_eq!(text(&after, "process.creation.time"), Some("2023-11-14T22:13:25.000Z"));
    assert_eq!(instance_id(&after), instance_id(&before));
}

fn with(environ: &[u8], published: &[(&str, &str)]) -> Resource {
    let attributes = published.iter().map(|(key, value)| ((*key).to_owned(), Value::Text((*value).into()))).collect();
    made(&image(99, environ), &Published { attributes }, false)
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
    let mut registry = registry();
    let published = |name: &str| Published { attributes: vec![("service.name".into(), Value::Text(name.into()))] };
    assert!(!registry.publish(&key(99), published("early")), "nobody has asked for it");
    registry.add(image(99, b""));
    assert!(!registry.publish(&key(99), published("one")), "its first call has not come");
    let first = registry.resource(key(99));
    assert_eq!(text(&first, "service.name"), Some("one"));
    assert!(!registry.publish(&key(99), published("one")));
    assert!(registry.publish(&key(99), published("two")));
    let later = ImageKey { exec_id: 2, ..key(99) };
    registry.add(Image { key: later, ..image(99, b"") });
    assert_eq!(text(&registry.resource(later), "service.name"), Some("unknown_service:bill\\xff"));
    assert_eq!(text(&registry.resource(key(99)), "service.name"), Some("two"));
}
