//! OBI's pinned map of the span that each thread is in (OpenTelemetry eBPF Instrumentation, `traces_ctx_v1`): the kernel
//! side reads it where it exists at the start.

use std::os::fd::AsFd;
use std::path::Path;

use libbpf_rs::{MapCore, MapHandle, MapType};
use tracing::warn;

use super::skel::OpenMqspanSkel;

const PATH: &str = "/sys/fs/bpf/otel/traces_ctx_v1";
/// The map's own name: libbpf gives it to ours, which the skeleton knows by this one.
const NAME: &str = "traces_ctx_v1";
/// A thread's `pid_tgid`, and `{trace_id[16], span_id[8]}`.
const KEY: u32 = 8;
const VALUE: u32 = 24;

/// Has the kernel side read the map, if there is one of the form that is known.
pub fn share(open: &mut OpenMqspanSkel<'_>) {
    if !Path::new(PATH).exists() {
        return;
    }
    match reuse(open) {
        Ok(()) => {
            if let Some(rodata) = &mut open.maps.rodata_data {
                rodata.reads_obi = true;
            }
        }
        Err(why) => warn!("{PATH} is not read: {why}"),
    }
}

fn reuse(open: &mut OpenMqspanSkel<'_>) -> Result<(), String> {
    let map = MapHandle::from_pinned_path(PATH).map_err(|error| error.to_string())?;
    let name = map.name().to_string_lossy().into_owned();
    let form = (&*name, map.map_type(), map.key_size(), map.value_size());
    if form != (NAME, MapType::LruHash, KEY, VALUE) {
        return Err(format!("it is of another form: {form:?}"));
    }
    open.maps.traces_ctx_v1.reuse_fd(map.as_fd()).map_err(|error| error.to_string())
}
