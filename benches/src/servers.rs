//! Which servers there are, and how each is found or built.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cases::Case;
use crate::children::run;
use crate::peers::TOKIO_WITH_TWO_THREADS;
use crate::process::Program;

/// How long a build may take.
const BUILD: Duration = Duration::from_secs(600);

/// How long a program may take to name its version.
const QUESTION: Duration = Duration::from_secs(20);

/// This package's folder.
pub const HERE: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    Tinyloop,
    Threaded,
    Sequential,
    Tokio,
    Epoll,
    Smol,
    Asyncio,
    Uvloop,
    Go,
    OneWorker,
    TwoWorkers,
    FourWorkers,
    TwoThreads,
}

impl Server {
    pub const ALL: [Self; 13] = [
        Self::Tinyloop,
        Self::Threaded,
        Self::Sequential,
        Self::Tokio,
        Self::Epoll,
        Self::Smol,
        Self::Asyncio,
        Self::Uvloop,
        Self::Go,
        Self::OneWorker,
        Self::TwoWorkers,
        Self::FourWorkers,
        Self::TwoThreads,
    ];

    /// Those of a quick run.
    pub const QUICK: [Self; 4] = [Self::Tinyloop, Self::Tokio, Self::Epoll, Self::Smol];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tinyloop => "tinyloop",
            Self::Threaded => "tinyloop-threaded",
            Self::Sequential => "tinyloop-sequential",
            Self::Tokio => "tokio",
            Self::Epoll => "epoll",
            Self::Smol => "smol",
            Self::Asyncio => "asyncio",
            Self::Uvloop => "uvloop",
            Self::Go => "go",
            Self::OneWorker => "1-worker",
            Self::TwoWorkers => "2-workers",
            Self::FourWorkers => "4-workers",
            Self::TwoThreads => TOKIO_WITH_TWO_THREADS,
        }
    }

    /// Whether it is the tinyloop program, with whatever options.
    pub fn is_tinyloop(self) -> bool {
        use Server::{FourWorkers, OneWorker, Sequential, Threaded, Tinyloop, TwoWorkers};
        matches!(
            self,
            Tinyloop | Threaded | Sequential | OneWorker | TwoWorkers | FourWorkers
        )
    }

    /// Whether it is made for several CPUs, and so measured on all of them.
    pub fn is_for_all_cpus(self) -> bool {
        matches!(
            self,
            Self::OneWorker | Self::TwoWorkers | Self::FourWorkers | Self::TwoThreads
        )
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|server| server.name() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("there is no server `{name}`; there are {names}")
            })
    }
}

/// The servers that can be run here.
pub struct Fleet {
    pub programs: Vec<(Server, Program)>,
    /// What was found, with its version.
    pub versions: Vec<String>,
    /// What a reader of the results has to know, such as who is left out.
    pub notes: Vec<String>,
    /// The tinyloop binary.
    pub tinyloop: PathBuf,
}

impl Fleet {
    /// Builds and finds the wanted servers. Without a given tinyloop it is built.
    pub fn gather(wanted: &[Server], tinyloop: Option<&Path>) -> Result<Self> {
        let mut fleet = Self {
            programs: Vec::new(),
            versions: Vec::new(),
            notes: Vec::new(),
            tinyloop: tinyloop.map_or_else(
                || Path::new(HERE).join("../target/release/tinyloop"),
                Path::to_owned,
            ),
        };
        if tinyloop.is_none() && wanted.iter().any(|server| server.is_tinyloop()) {
            build_tinyloop()?;
        }
        for &server in wanted {
            match fleet.find(server) {
                Ok(program) => fleet.programs.push((server, program)),
                // Nothing but tinyloop itself has to be there.
                Err(error) if !server.is_tinyloop() => {
                    fleet.note(&format!("left out: {server}: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(fleet)
    }

    /// How the server at a place of the fleet is started for a case.
    pub fn program(&self, place: usize, case: Case) -> Result<Program> {
        let (server, program) = &self.programs[place];
        case.peer(*server)
            .map_or_else(|| Ok(program.clone()), program_of_this_binary)
    }

    pub fn has(&self, server: Server) -> bool {
        self.programs.iter().any(|(found, _)| *found == server)
    }

    /// Says something at once, and again with the results.
    pub fn note(&mut self, note: &str) {
        eprintln!("{note}");
        self.notes.push(note.to_owned());
    }

    fn find(&mut self, server: Server) -> Result<Program> {
        match server {
            Server::Tinyloop => self.tinyloop_with(server, ["--model", "async"]),
            Server::Threaded => self.tinyloop_with(server, ["--model", "threaded"]),
            Server::Sequential => self.tinyloop_with(server, ["--model", "sequential"]),
            Server::OneWorker => self.tinyloop_with(server, ["--workers", "1"]),
            Server::TwoWorkers => self.tinyloop_with(server, ["--workers", "2"]),
            Server::FourWorkers => self.tinyloop_with(server, ["--workers", "4"]),
            Server::Tokio | Server::Epoll | Server::Smol | Server::TwoThreads => self.own(server),
            Server::Asyncio => self.python(
                server,
                "import sys; print('Python', sys.version.split()[0])",
            ),
            Server::Uvloop => {
                self.python(server, "import uvloop; print('uvloop', uvloop.__version__)")
            }
            Server::Go => self.go(),
        }
    }

    fn tinyloop_with(&self, server: Server, option: [&str; 2]) -> Result<Program> {
        ensure!(
            self.tinyloop.is_file(),
            "there is no {}",
            self.tinyloop.display()
        );
        Ok(Program {
            name: server.name(),
            path: self.tinyloop.clone(),
            arguments: ["-q", "-l", "127.0.0.1:0"]
                .iter()
                .chain(&option)
                .map(|&word| word.to_owned())
                .collect(),
        })
    }

    /// One of the servers in this binary.
    fn own(&mut self, server: Server) -> Result<Program> {
        // The raw loop has no version.
        self.versions.extend(locked_version(server.name()));
        program_of_this_binary(server.name())
    }

    /// `echo.py`, if Python can run the statements, which print a version.
    fn python(&mut self, server: Server, statements: &str) -> Result<Program> {
        // Python itself: `python3` may be a script that looks for it first.
        let path = ask(
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]),
            "Python is not installed",
        )?;
        let version = ask(
            Command::new(&path).args(["-c", statements]),
            "not installed for this Python",
        )?;
        self.versions.push(version);
        Ok(Program {
            name: server.name(),
            path: path.into(),
            arguments: vec![format!("{HERE}/src/peers/echo.py"), server.name().into()],
        })
    }

    /// `echo.go`, if Go can build it.
    fn go(&mut self) -> Result<Program> {
        let version = ask(Command::new("go").arg("version"), "Go is not installed")?;
        // `go version go1.22.1 linux/amd64`
        let number = version.split_whitespace().nth(2).unwrap_or("go");
        self.versions.push(number.replacen("go", "Go ", 1));
        let path = env::current_exe()?.with_file_name("echo-go");
        run(
            Command::new("go")
                .args(["build", "-o"])
                .arg(&path)
                .arg(format!("{HERE}/src/peers/echo.go")),
            BUILD,
        )
        .context("Go cannot build its server")?;
        Ok(Program {
            name: Server::Go.name(),
            path,
            arguments: Vec::new(),
        })
    }
}

/// The peer of this name.
pub fn program_of_this_binary(name: &'static str) -> Result<Program> {
    Ok(Program {
        name,
        path: env::current_exe()?,
        arguments: vec!["serve".into(), name.into()],
    })
}

fn build_tinyloop() -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(
        Command::new(cargo)
            .current_dir(format!("{HERE}/.."))
            // The binary is looked for in the crate's own target folder.
            .env_remove("CARGO_TARGET_DIR")
            .args(["build", "--release", "--locked", "--bin", "tinyloop"]),
        BUILD,
    )
    .context("cannot build tinyloop")?;
    Ok(())
}

/// What a command prints, or why a server is left out.
fn ask(command: &mut Command, otherwise: &'static str) -> Result<String> {
    let printed = run(command.stderr(std::process::Stdio::null()), QUESTION).context(otherwise)?;
    Ok(printed.trim().to_owned())
}

/// The name and version of a crate that this binary is built with.
fn locked_version(name: &str) -> Option<String> {
    let lock = include_str!("../Cargo.lock");
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    let (version, _) = rest.split_once('"')?;
    Some(format!("{name} {version}"))
}
