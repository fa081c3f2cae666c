//! How a program of PostgreSQL is told where to connect: what the process list shows holds no secret.

use super::scratch::Scratch;
use crate::environment;
use crate::error::{Error, Result, SqlState};
use crate::libpq::Dsn;

/// The name under which the service file holds what cannot be passed otherwise.
const SERVICE: &str = "zodan";

/// What goes where.
#[derive(Debug, PartialEq)]
struct Split {
    /// For the argument list.
    conninfo: String,
    /// For `PGPASSWORD`.
    password: Option<String>,
    /// For a service file: libpq reads no other secret from the environment.
    secrets: Vec<(String, String)>,
}

/// The connection argument and the environment for a program that connects to `node`. `settings` are
/// given to its sessions, after those in the connection string.
pub fn of(
    node: &str,
    dsn: &Dsn,
    settings: &[(String, String)],
    scratch: &Scratch,
) -> Result<(String, Vec<(String, String)>)> {
    let inherited = std::env::var("PGOPTIONS").unwrap_or_default();
    let Split {
        mut conninfo,
        password,
        secrets,
    } = split(dsn, settings, &inherited);
    let mut environment = vec![];
    environment.extend(password.map(|p| ("PGPASSWORD".to_owned(), p)));
    if !secrets.is_empty() {
        if dsn.get("service").is_some() {
            return Err(unpassable(
                node,
                &secrets[0].0,
                "together with a service name",
            ));
        }
        if let Some((keyword, _)) = secrets.iter().find(|(_, value)| !fits_in_a_line(value)) {
            return Err(unpassable(
                node,
                keyword,
                "with blanks at its ends or line breaks",
            ));
        }
        let file = scratch.write("service", service_file(&secrets).as_bytes())?;
        environment.push(("PGSERVICEFILE".into(), file.to_string_lossy().into_owned()));
        conninfo.push_str(&format!(" service={SERVICE}"));
    }
    Ok((conninfo, environment))
}

fn split(dsn: &Dsn, settings: &[(String, String)], inherited: &str) -> Split {
    let mut pairs = vec![];
    let mut password = None;
    let mut secrets = vec![];
    for (keyword, value, secret) in dsn.options() {
        match (keyword, secret) {
            ("password", _) => password = Some(value.to_owned()),
            (_, true) => secrets.push((keyword.to_owned(), value.to_owned())),
            ("options" | "application_name", _) => {}
            _ => pairs.push(format!("{keyword}={}", quote(value))),
        }
    }
    pairs.push("application_name=zodan".into());
    // A role that is named in the connection string is meant, one that the login has by default is not.
    let no_role = environment::option("role", "none");
    let given = dsn.get("options").unwrap_or(inherited).to_owned();
    let own = settings
        .iter()
        .map(|(name, value)| environment::option(name, value));
    let options: Vec<String> = [no_role, given]
        .into_iter()
        .filter(|o| !o.is_empty())
        .chain(own)
        .collect();
    pairs.push(format!("options={}", quote(&options.join(" "))));
    Split {
        conninfo: pairs.join(" "),
        password,
        secrets,
    }
}

fn service_file(secrets: &[(String, String)]) -> String {
    let lines: String = secrets.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
    format!("[{SERVICE}]\n{lines}")
}

/// A service file knows no quoting, and libpq takes a line of up to 1023 bytes.
fn fits_in_a_line(value: &str) -> bool {
    value.trim() == value && !value.contains(['\n', '\r']) && value.len() < 900
}

fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn unpassable(node: &str, keyword: &str, how: &str) -> Error {
    Error::refused(
        SqlState::FEATURE_NOT_SUPPORTED,
        format!(
            "the connection string of node \"{node}\" has {keyword} {how}, which pg_dump and pg_restore cannot be given safely"
        ),
        format!(
            "Use a connection string without {keyword}, for example with a key file that needs none."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Vec<(String, String)> {
        vec![("a.b".into(), "x y\\".into())]
    }

    #[test]
    fn no_secret_is_in_the_argument() {
        let dsn = Dsn::parse("host=h password='p w' sslpassword=topsecret").unwrap();
        let split = split(&dsn, &[], "");
        assert!(!split.conninfo.contains("p w") && !split.conninfo.contains("topsecret"));
        assert_eq!(split.password.as_deref(), Some("p w"));
        assert_eq!(
            split.secrets,
            [("sslpassword".to_owned(), "topsecret".to_owned())]
        );
        assert_eq!(
            service_file(&split.secrets),
            "[zodan]\nsslpassword=topsecret\n"
        );
    }

    #[test]
    fn the_argument_says_what_the_connection_string_said() {
        let dsn =
            Dsn::parse("host=/tmp dbname='a\\'b \\\\c' options='-c x=1' application_name=mine")
                .unwrap();
        let conninfo = split(&dsn, &settings(), "-c never=1").conninfo;
        let again = Dsn::parse(&conninfo).unwrap();
        assert_eq!(again.get("dbname"), Some("a'b \\c"));
        assert_eq!(
            again.get("options"),
            Some("-c role=none -c x=1 -c a.b=x\\ y\\\\")
        );
        assert_eq!(again.get("application_name"), Some("zodan"));
        let bare = Dsn::parse("host=h").unwrap();
        let inherited = Dsn::parse(&split(&bare, &settings(), "-c old=1").conninfo).unwrap();
        assert_eq!(
            inherited.get("options"),
            Some("-c role=none -c old=1 -c a.b=x\\ y\\\\")
        );
        assert_eq!(
            Dsn::parse(&split(&bare, &[], "").conninfo)
                .unwrap()
                .get("options"),
            Some("-c role=none")
        );
    }

    #[test]
    fn what_a_service_file_cannot_hold_is_noticed() {
        assert!(fits_in_a_line("a=b # c") && !fits_in_a_line(" a") && !fits_in_a_line("a\nb"));
    }
}
