//! Parses the arguments, starts logging, runs the command, exits with its code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use gpuvm::cli::{Cli, LogFormat, code, run};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are answers, not errors.
            let wrong = e.use_stderr();
            let _ = e.print();
            return ExitCode::from(if wrong { code::USAGE } else { code::OK });
        }
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(cli.log_level()).with_writer(std::io::stderr).with_ansi(colour);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    run(cli)
}
