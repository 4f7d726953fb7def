//! The words of a fault: what is accepted, how it displays, and what a wrong word is told.

use std::time::Duration;

use tinyloop::faults::{EXAMPLES, Fault, Kind};

#[test]
fn a_fault_is_written_as_people_write_it_and_displays_so() {
    let ms = Duration::from_millis;
    let kinds = [
        ("delay=100ms", Kind::Delay(ms(100)..=ms(100))),
        ("delay=50ms..2s", Kind::Delay(ms(50)..=ms(2000))),
        ("rate=10000", Kind::Rate(10_000..=10_000)),
        (
            "slice=1..7",
            Kind::Slice {
                bytes: 1..=7,
                pause: ms(0)..=ms(0),
            },
        ),
        (
            "slice=5/10ms",
            Kind::Slice {
                bytes: 5..=5,
                pause: ms(10)..=ms(10),
            },
        ),
        ("close-after=0..5000", Kind::CloseAfter(0..=5000)),
        ("reset-after=5000", Kind::ResetAfter(5000..=5000)),
        ("silent-after=1", Kind::SilentAfter(1..=1)),
        ("stall-after=1", Kind::StallAfter(1..=1)),
        ("close-delay=1500ms", Kind::CloseDelay(ms(1500)..=ms(1500))),
        ("refuse", Kind::Refuse),
        ("corrupt=1..10", Kind::Corrupt(1..=10)),
    ];
    for (text, kind) in kinds {
        let fault = Fault::from(kind);
        assert_eq!(text.parse(), Ok(fault.clone()), "{text}");
        assert_eq!(fault.to_string(), text);
        for (percent, share) in [(5.0, "@5%"), (0.25, "@0.25%"), (0.0, "@0%"), (100.0, "")] {
            let text = format!("{text}{share}");
            assert_eq!(fault.clone().share(percent).to_string(), text);
            assert_eq!(text.parse(), Ok(fault.clone().share(percent)), "{text}");
        }
    }
    for example in EXAMPLES {
        example.parse::<Fault>().expect(example);
    }
}

#[test]
fn units_are_those_that_people_use() {
    for (text, same) in [
        ("rate=10kB", "rate=10000"),
        ("rate=10KB", "rate=10000"),
        ("rate=1.5KiB", "rate=1536"),
        ("rate=1MiB..2MB", "rate=1048576..2000000"),
        ("close-after=5000B", "close-after=5000"),
        (
            "close-after=1GB..1GiB",
            "close-after=1000000000..1073741824",
        ),
        ("delay=0.5s", "delay=500ms"),
        ("delay=1us..1ms", "delay=1us..1ms"),
        ("delay=1.5min", "delay=90s"),
        ("delay=0ms", "delay=0s"),
        ("refuse@0.5%", "refuse@0.5%"),
    ] {
        assert_eq!(text.parse::<Fault>().unwrap().to_string(), same);
    }
}

#[test]
fn a_wrong_word_is_told_in_one_line_what_is_accepted() {
    let kinds = "such as delay=50ms..200ms, rate=10kB";
    for (text, expected) in [
        ("help", kinds),
        ("", kinds),
        ("Delay=1s", kinds),
        ("refuse=1", "expected refuse alone"),
        ("delay", "delay=100ms, delay=0.5s..2s"),
        ("delay=100", "a time with its unit"),
        ("delay=-1s", "a time with its unit"),
        ("delay=1h", "a time with its unit"),
        ("delay=200ms..100ms", "or a range"),
        ("delay=1.0000000001s", "a time with its unit"),
        ("delay=99999999999s", "a time with its unit"),
        ("rate=0", "at least 1"),
        ("rate=10k", "rate=10kB"),
        ("rate=1.5", "rate=10kB"),
        ("rate=18446744073709551615kB", "rate=10kB"),
        ("slice=0..7", "slice=1..7/10ms"),
        ("slice=1..7/10", "slice=1..7/10ms"),
        ("slice=1.7", "slice=1..7/10ms"),
        ("reset-after=5000ms", "reset-after=1kB..64KiB"),
        ("reset-after=..5", "reset-after=1kB..64KiB"),
        ("corrupt=1001", "up to 1000"),
        ("refuse@", "such as @5%"),
        ("refuse@5", "such as @5%"),
        ("refuse@101%", "such as @5%"),
        ("refuse@5%@5%", "such as @5%"),
    ] {
        let error = text.parse::<Fault>().expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
