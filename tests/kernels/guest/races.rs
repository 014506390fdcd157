//! Arguments that change under the kernel's eyes: what was asked for, and what was used.

use std::fs;

use anyhow::{Context, Result, ensure};
use support::otlp::Value;

use super::{Run, kinds};

/// Prevents a caller from hiding what it really opens: what its memory held at entry is told apart from what the kernel
/// read, and only where the two differ.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn what_the_kernel_used_is_told() -> Result<()> {
    for kind in kinds() {
        let run = Run::new(kind)?;
        let print = run.mqspan.file("used");
        let print_arg = format!("--print={}", print.display());
        let run = run.of_workload(&["--signals=traces", "--call=mq_open"], &["race", "--calls=200", &print_arg])?;
        let (used, spans) = (fs::read_to_string(&print)?, run.all_spans()?);
        ensure!(used.lines().count() == spans.len(), "{kind}: {} spans", spans.len());
        let (mut names, mut attrs) = (0, 0);
        for (line, span) in used.lines().zip(&spans) {
            let (what, value) = line.split_once('\t').context("a line")?;
            let mismatch = span.attributes.get("posix_mq.mismatch");
            let requested = span.text("posix_mq.requested_name");
            if what == "name" {
                ensure!(span.text("messaging.destination.name") == Some(value), "{kind}: {line}: {span:?}");
                ensure!(requested == Some("/race-before"), "{kind}: {span:?}");
                ensure!(mismatch == Some(&Value::Texts(vec!["name".into()])), "{kind}: {span:?}");
                names += 1;
                continue;
            }
            let [asked, in_force] = ["attr", "queue"].map(|of| span.int(&format!("posix_mq.{of}.maxmsg")));
            ensure!(in_force == Some(value.parse()?) && requested.is_none(), "{kind}: {line}: {span:?}");
            // Only functions show the kernel's own copy.
            let differs = asked != in_force && kind != "tracepoint";
            let expected = differs.then(|| Value::Texts(vec!["attr".into()]));
            ensure!(mismatch == expected.as_ref(), "{kind}: {line}: {span:?}");
            attrs += usize::from(asked != in_force);
        }
        println!("{kind}: {names} other names, {attrs} other attrs in {} calls", spans.len());
        ensure!(names == 200 && attrs > 0, "{kind}: nothing changed");
    }
    Ok(())
}
