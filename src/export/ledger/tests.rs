use super::*;

fn batch(ledger: &Arc<Ledger>, calls: u64) -> Arc<Tally> {
    let tally = Tally::new(ledger);
    for _ in 0..calls {
        ledger.received();
        tally.add();
    }
    tally
}

/// Prevents a call from counting twice because two outputs took it, or as lost because one did not.
#[test]
fn a_call_counts_once() {
    let ledger = Ledger::new(vec!["otlp.traces".into(), "console.traces".into()], false);
    let tally = batch(&ledger, 10);
    Share::of_calls(&tally, 0, 10).settle(Outcome::Lost(Stage::GivenUp));
    Share::of_calls(&tally, 1, 4).settle(Outcome::Sent { rejected: 0 });
    Share::of_calls(&tally, 1, 6).settle(Outcome::Sent { rejected: 0 });
    drop(tally);
    let totals = ledger.totals();
    assert_eq!((totals.exported, totals.lost()), (10, 0));
    assert_eq!(totals.outputs["otlp.traces"], OutputTotals { sent: 0, rejected: 0, lost: 10 });
    assert_eq!(totals.outputs["console.traces"], OutputTotals { sent: 10, rejected: 0, lost: 0 });
    assert!(ledger.is_settled());
}

/// Prevents a rejected part from counting as exported, and one that a backend claims beyond what it was sent.
#[test]
fn partial_success_and_refusal() {
    let ledger = Ledger::new(vec!["otlp.traces".into()], false);
    for (rejected, calls) in [(3, 10), (99, 5)] {
        Share::of_calls(&batch(&ledger, calls), 0, calls).settle(Outcome::Sent { rejected });
    }
    Share::of_calls(&batch(&ledger, 2), 0, 2).settle(Outcome::Lost(Stage::Refused));
    let totals = ledger.totals();
    assert_eq!((totals.exported, totals.lost["rejected"], totals.lost["refused"]), (7, 8, 2));
    assert_eq!(totals.outputs["otlp.traces"], OutputTotals { sent: 7, rejected: 10, lost: 0 });
    assert!(ledger.is_settled());
}

/// Prevents what is dropped anywhere on its way, or still held at the end, from going uncounted.
#[test]
fn nothing_vanishes() {
    let ledger = Ledger::new(vec!["otlp.traces".into()], false);
    drop(Share::of_calls(&batch(&ledger, 3), 0, 3));
    let held = Share::of_calls(&batch(&ledger, 4), 0, 4);
    ledger.kernel(&Counts { filtered: 2, lost_ring: 5, missed: 1, unpaired: 9, ..Counts::default() });
    assert_eq!(ledger.totals().lost["shutdown"], 3);
    let totals = ledger.close();
    assert_eq!((totals.captured, totals.lost["shutdown"], totals.unpaired), (15, 7, 9));
    assert!(ledger.is_settled());
    drop(held);
}
