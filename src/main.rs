//! The program: reads the command line and carries it out; every error ends here, as lines on stderr and a status.

use std::env;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

use mqspan::cli::{self, Command, Exit};
use mqspan::config::Settings;
use mqspan::config::top::TopSettings;
use mqspan::model::error::Error;
use mqspan::{capability, check, names, run};

/// Run by the loader before Rust's own start (.init_array of the ELF specification).
#[used]
#[unsafe(link_section = ".init_array")]
static REMEMBER: extern "C" fn() = run::signals::remember;

fn main() -> ExitCode {
    match carry_out() {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("mqspan: {error}");
            error.status.into()
        }
    }
}

fn carry_out() -> Result<u8, Error> {
    names::ask_built_in();
    let command = match cli::parse(env::args_os()) {
        Ok(command) => command,
        Err(Exit::Help(text)) => {
            return print(|out| out.write_all(text.as_bytes()));
        }
        Err(Exit::Usage(text)) => return Err(Error::usage(text)),
    };
    match command {
        Command::Run(options) => {
            lay_down()?;
            run::run(Settings::load(*options, &|name| env::var_os(name))?)
        }
        Command::Top(options) => {
            lay_down()?;
            run::top::top(TopSettings::load(*options, &|name| env::var_os(name))?)
        }
        Command::Check { format, measure, btf } => {
            let works = check::check(format, measure, btf.as_deref()).or_else(closed)?;
            Ok(if works { 0 } else { 1 })
        }
        Command::Completions { shell } => print(|out| cli::completions(shell, out)),
        Command::Man => print(|out| cli::man(out)),
    }
}

/// Lays down the capabilities that only the threads which need them take up.
fn lay_down() -> Result<(), Error> {
    capability::lay_down().map_err(|error| {
        Error::cannot_run(
            format!("the capabilities can't be changed: {error}"),
            "run mqspan as root, or with the capabilities that mqspan check names",
        )
    })
}

/// Prints to stdout; that nobody reads on is no error.
fn print(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<u8, Error> {
    write(&mut io::stdout().lock()).map(|()| true).or_else(closed).map(|_| 0)
}

fn closed(error: io::Error) -> Result<bool, Error> {
    match error.kind() {
        ErrorKind::BrokenPipe => Ok(true),
        _ => Err(Error::cannot_run(format!("stdout: {error}"), "let stdout be open and its disk not full")),
    }
}
