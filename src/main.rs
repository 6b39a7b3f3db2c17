//! Parses the arguments, starts logging, runs the command, exits with its code.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use gpuvm::cli::{Cli, LogFormat, VMCTL_HELP, code, run, words};

fn main() -> ExitCode {
    let Some(words) = words(std::env::args_os()) else {
        let _ = std::io::stdout().write_all(VMCTL_HELP.as_bytes());
        return ExitCode::from(code::OK);
    };
    let cli = match Cli::read(words) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are answers, not errors.
            let wrong = e.use_stderr();
            let _ = e.print();
            return ExitCode::from(if wrong { code::USAGE } else { code::OK });
        }
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt()
        .with_env_filter(cli.log_level())
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        // A log that cannot be written (a full disk, a terminal that is gone) must not end a run: the default prints
        // about it to standard error, and panics where that fails too.
        .log_internal_errors(false);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    run(cli)
}
