//! Writes the man page and the shells' completions, from the definitions of the program's options.
//!
//! `cargo run --locked --manifest-path packaging/Cargo.toml` writes them; with `-- --check` it only says whether they
//! are up to date.

#[allow(dead_code)]
#[path = "../../src/cli/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "../../src/cli/values.rs"]
mod values;

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use argh::{ArgsInfo, FlagInfo, FlagInfoKind, Optionality};

/// Everything of the man page but its options.
const MAN_PAGE: &str = include_str!("../tinyloop.1.in");

const ORIGIN: &str = "Written by packaging/src/main.rs from src/cli/args.rs: change it there.";

fn main() -> ExitCode {
    let check = match env::args().skip(1).collect::<Vec<_>>()[..] {
        [] => false,
        [ref flag] if flag == "--check" => true,
        _ => {
            eprintln!("usage: tinyloop-packaging [--check]");
            return ExitCode::from(2);
        }
    };
    match write(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes each text to its file, or checks that it is there already.
fn write(check: bool) -> io::Result<()> {
    let options: Vec<Choice> = args::Options::get_args_info()
        .flags
        .iter()
        .map(Choice::from)
        .collect();
    let texts = [
        ("tinyloop.1", man_page(&options)),
        ("completions/tinyloop.bash", bash(&options)),
        ("completions/_tinyloop", zsh(&options)),
        ("completions/tinyloop.fish", fish(&options)),
    ];
    for (file, text) in texts {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        if !check {
            fs::write(path, text)?;
        } else if fs::read_to_string(path).ok() != Some(text) {
            let remedy = "cargo run --locked --manifest-path packaging/Cargo.toml";
            let reason = format!("packaging/{file} is not up to date; to write it: {remedy}");
            return Err(io::Error::other(reason));
        }
    }
    Ok(())
}

/// An option of the command line.
struct Choice {
    /// `-m` and `--model`, or only the latter.
    names: Vec<String>,
    /// What a value is called, if there is one.
    value: Option<&'static str>,
    /// The values to choose from, if they are few.
    values: Vec<&'static str>,
    repeatable: bool,
    help: &'static str,
}

impl From<&FlagInfo<'static>> for Choice {
    fn from(flag: &FlagInfo<'static>) -> Choice {
        // argh keeps the triggers of help to itself.
        let short = if flag.long == "--help" {
            Some('h')
        } else {
            flag.short
        };
        let short = short.map(|short| format!("-{short}"));
        Choice {
            names: short.into_iter().chain([flag.long.to_owned()]).collect(),
            value: match flag.kind {
                FlagInfoKind::Option { arg_name } => Some(arg_name),
                FlagInfoKind::Switch => None,
            },
            values: match flag.long {
                "--model" => names(&values::MODELS),
                "--framing" => names(&values::FRAMINGS),
                "--when-full" => names(&values::WHEN_FULL),
                "--log" => names(&values::LOG_FORMATS),
                "--fault" => tinyloop::faults::EXAMPLES.to_vec(),
                _ => Vec::new(),
            },
            repeatable: matches!(flag.optionality, Optionality::Repeating),
            help: flag.description,
        }
    }
}

fn names<T>(values: &[(&'static str, T)]) -> Vec<&'static str> {
    values.iter().map(|(name, _)| *name).collect()
}

impl Choice {
    /// The help as far as it needs no quoting in a shell: what the option is for, without its values and defaults.
    fn purpose(&self) -> &str {
        let end = self
            .help
            .find([':', '(', ';', '[', '\''])
            .unwrap_or(self.help.len());
        self.help[..end].trim_end()
    }
}

fn man_page(options: &[Choice]) -> String {
    let (mut synopsis, mut list) = (String::new(), String::new());
    for option in options {
        // In mdoc, `Fl m` is -m, and `Fl -model` is --model.
        let flags: Vec<_> = option
            .names
            .iter()
            .map(|name| format!("Fl {}", &name[1..]))
            .collect();
        let value = option
            .value
            .map_or(String::new(), |value| format!(" Ar {value}"));
        let dots = if option.repeatable { " ..." } else { "" };
        synopsis += &format!(".Op {}{value}{dots}\n", flags[0]);
        list += &format!(
            ".It {}{value}\n{}.\n",
            flags.join(" , "),
            capitalised(option.help)
        );
    }
    let page = MAN_PAGE
        .replace("@SYNOPSIS@\n", &synopsis)
        .replace("@OPTIONS@\n", &list);
    format!(".\\\" {ORIGIN}\n{page}")
}

fn capitalised(text: &str) -> String {
    let (first, rest) = text.split_at(1);
    first.to_uppercase() + rest
}

fn bash(options: &[Choice]) -> String {
    let (mut cases, mut without_values) = (String::new(), Vec::new());
    for option in options.iter().filter(|option| option.value.is_some()) {
        match &option.values[..] {
            [] => without_values.extend_from_slice(&option.names),
            values => {
                let (names, values) = (option.names.join("|"), values.join(" "));
                cases += &format!("        {names}) words='{values}' ;;\n");
            }
        }
    }
    cases += &format!("        {}) words= ;;\n", without_values.join("|"));
    let names = options.iter().flat_map(|option| &option.names);
    let names: Vec<&str> = names.map(String::as_str).collect();
    format!(
        r#"# {ORIGIN}
_tinyloop() {{
    local words current=${{COMP_WORDS[COMP_CWORD]}} option=${{COMP_WORDS[COMP_CWORD-1]}}
    # The = of --model=async is a word by itself.
    if [[ $current == = ]]; then
        current=
    elif [[ $option == = ]]; then
        option=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    case $option in
{cases}        *) words='{}' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _tinyloop tinyloop
"#,
        names.join(" ")
    )
}

fn zsh(options: &[Choice]) -> String {
    let mut specs = String::new();
    for option in options {
        let names: Vec<_> = option
            .names
            .iter()
            .map(|name| match option.value {
                Some(_) if name.starts_with("--") => format!("{name}="),
                _ => name.clone(),
            })
            .collect();
        let names = match &names[..] {
            [name] => name.clone(),
            _ => format!("{{{}}}", names.join(",")),
        };
        let others = match option.repeatable {
            true => "*".to_owned(),
            false => format!("({})", option.names.join(" ")),
        };
        let value = match (option.value, &option.values[..]) {
            (None, _) => String::new(),
            (Some(value), []) => format!(":{value}: "),
            (Some(value), values) => format!(":{value}:({})", values.join(" ")),
        };
        specs += &format!(" \\\n    '{others}'{names}'[{}]{value}'", option.purpose());
    }
    format!("#compdef tinyloop\n# {ORIGIN}\n_arguments -S{specs}\n")
}

fn fish(options: &[Choice]) -> String {
    let mut text = format!("# {ORIGIN}\ncomplete -c tinyloop -f\n");
    for option in options {
        text += "complete -c tinyloop";
        for name in &option.names {
            text += &match name.strip_prefix("--") {
                Some(long) => format!(" -l {long}"),
                None => format!(" -s {}", &name[1..]),
            };
        }
        if option.value.is_some() {
            text += " -x";
        }
        if !option.values.is_empty() {
            text += &format!(" -a '{}'", option.values.join(" "));
        }
        text += &format!(" -d '{}'\n", option.purpose());
    }
    text
}
