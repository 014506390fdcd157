//! The container that the path of a control group names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqspan::model::container::Container;

fuzz_target!(|path: &str| {
    let _ = Container::of_path(path);
});
