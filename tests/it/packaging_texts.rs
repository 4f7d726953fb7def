//! The man page and the completions: that they know the program's options, and that their readers understand them.

use std::process::Command;

use crate::support::Program;

const MAN_PAGE: &str = include_str!("../../packaging/tinyloop.1");
const BASH: &str = include_str!("../../packaging/completions/tinyloop.bash");
const ZSH: &str = include_str!("../../packaging/completions/_tinyloop");
const FISH: &str = include_str!("../../packaging/completions/tinyloop.fish");
const KUBERNETES: &str = include_str!("../../packaging/kubernetes.yaml");

/// What a command prints, when it has nothing to complain about.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("is installed");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(
        output.status.success() && stderr.is_empty(),
        "{stdout}{stderr}"
    );
    stdout
}

/// The options of `--help`, each with its names.
fn options() -> Vec<Vec<String>> {
    let help = output(Program::command().arg("--help"));
    let (_, options) = help.split_once("Options:\n").unwrap();
    let options = options.lines().filter(|line| line.starts_with("  -"));
    options
        .map(|line| {
            let names = line
                .split_whitespace()
                .take_while(|word| word.starts_with('-'));
            names
                .map(|name| name.trim_end_matches(',').to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn every_option_is_in_the_man_page_and_in_the_completions() {
    let options = options();
    assert_eq!(options[0], ["-l", "--listen"]);
    for names in options {
        let in_mdoc: Vec<String> = names
            .iter()
            .map(|name| format!("Fl {}", &name[1..]))
            .collect();
        let item = format!("\n.It {}", in_mdoc.join(" , "));
        assert!(MAN_PAGE.contains(&item), "the man page has no {names:?}");

        for completions in [BASH, ZSH] {
            let is_in_name = |c: char| c.is_alphanumeric() || c == '-';
            let words = completions.split(|c| !is_in_name(c)).collect::<Vec<_>>();
            for name in &names {
                assert!(words.contains(&name.as_str()), "no {name} in {completions}");
            }
        }
        let in_fish: String = names
            .iter()
            .map(|name| match name.strip_prefix("--") {
                Some(long) => format!(" -l {long}"),
                None => format!(" -s {}", &name[1..]),
            })
            .collect();
        let complete = format!("complete -c tinyloop{in_fish} ");
        assert!(FISH.contains(&complete), "no {names:?} in {FISH}");
    }
}

#[test]
fn every_kind_of_fault_is_in_the_man_page_and_in_the_completions() {
    for example in tinyloop::faults::EXAMPLES {
        let item = match example.split_once('=') {
            Some((name, value)) => format!("\n.It Cm {name} Ns = Ns Ar {value}\n"),
            None => format!("\n.It Cm {example}\n"),
        };
        assert!(MAN_PAGE.contains(&item), "the man page has no {example}");
        for completions in [BASH, ZSH, FISH] {
            assert!(completions.contains(example), "no {example}");
        }
    }
}

#[test]
#[ignore = "needs mandoc"]
fn mandoc_finds_no_fault_in_the_man_page() {
    output(Command::new("mandoc").args(["-Tlint", "-Wwarning", "packaging/tinyloop.1"]));
}

#[test]
#[ignore = "needs bash, fish and zsh"]
fn the_shells_complete_options_and_their_values() {
    let bash = |words: &str| {
        let complete = format!(
            "source packaging/completions/tinyloop.bash; COMP_WORDS=(tinyloop {words} ''); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _tinyloop; echo \"${{COMPREPLY[@]}}\""
        );
        output(Command::new("bash").args(["-c", &complete]))
    };
    let fish = |words: &str| {
        let complete = format!(
            "source packaging/completions/tinyloop.fish; complete -C 'tinyloop {words} ' | cut -f1"
        );
        let lines = output(Command::new("fish").args(["-c", &complete]));
        lines.replace('\n', " ").trim_end().to_owned() + "\n"
    };
    assert_eq!(bash("--framing"), "chunk line\n");
    assert_eq!(fish("--framing"), "chunk line\n");
    let kinds = tinyloop::faults::EXAMPLES.join(" ") + "\n";
    assert_eq!(bash("--fault"), kinds);
    assert_eq!(bash("--fault ="), kinds);
    for kind in kinds.split_whitespace() {
        assert!(fish("--fault").contains(kind), "{kind}");
    }
    assert_eq!(bash("-m ="), "async threaded sequential\n");
    assert_eq!(bash("--drain"), "\n");
    assert_eq!(fish("--drain"), "\n");
    assert!(bash("-q").contains(" --drain "));
    output(Command::new("zsh").args(["-n", "packaging/completions/_tinyloop"]));
}

/// The arguments of the container in the Kubernetes manifest.
fn pod_args() -> Vec<&'static str> {
    let (_, args) = KUBERNETES.split_once(" args:\n").unwrap();
    let args = args
        .lines()
        .map_while(|line| line.trim().strip_prefix("- "));
    args.map(|arg| arg.trim_matches('"')).collect()
}

#[test]
fn the_pod_has_time_for_the_lame_duck_and_the_drain_and_the_program_takes_its_arguments() {
    let args = pod_args();
    let seconds = |option| -> u64 {
        let at = args.iter().position(|arg| *arg == option).unwrap();
        args[at + 1].parse().unwrap()
    };
    let setting = "terminationGracePeriodSeconds: ";
    let grace = KUBERNETES.split(setting).nth(1).unwrap().lines().next();
    let grace: u64 = grace.unwrap().parse().unwrap();
    assert!(grace >= seconds("--lame-duck") + seconds("--drain") + 5);
    let any_port = |arg: &str| arg.replace(":25000", "127.0.0.1:0").replace("25001", "0");
    let args: Vec<String> = args.iter().map(|arg| any_port(arg)).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let program = Program::start(&args);
    assert!(program.stdout_line().starts_with("monitor on 0.0.0.0:"));
}
