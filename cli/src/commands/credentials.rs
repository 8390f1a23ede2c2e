//! Tokens of endpoints, from files and variables: never from the command line, where others of the machine can read them.

use std::{env, fs, path::Path};

use anyhow::{Context as _, bail};
use forebay_proto::wire;
use serde_json::{Value, json};

use crate::{Usage, args::EndpointArgs};

impl EndpointArgs {
    /// Something is said of credentials.
    pub(crate) fn has_credentials(&self) -> bool {
        !self.credential_files.is_empty() || !self.clear_credentials.is_empty()
    }
}

/// The endpoints with the credentials that are named.
pub(super) fn put(
    mut endpoints: Vec<wire::Endpoint>,
    given: &EndpointArgs,
) -> anyhow::Result<Vec<wire::Endpoint>> {
    for named in &given.credential_files {
        let (id, file) = match named.split_once('=') {
            Some((id, file)) => (Some(id), file),
            None => (None, named.as_str()),
        };
        let bearer_token = token(Path::new(file))?;
        let credential = wire::Credential {
            bearer_token,
            ..wire::Credential::default()
        };
        set(&mut endpoints, id, "--credential-file", &credential)?;
    }
    for id in &given.clear_credentials {
        let credential = wire::Credential {
            clear: true,
            ..wire::Credential::default()
        };
        set(&mut endpoints, Some(id), "--clear-credential", &credential)?;
    }
    Ok(endpoints)
}

fn set(
    endpoints: &mut [wire::Endpoint],
    id: Option<&str>,
    flag: &str,
    credential: &wire::Credential,
) -> anyhow::Result<()> {
    let mut found = false;
    for (n, endpoint) in endpoints.iter_mut().enumerate() {
        let own = match endpoint.id.is_empty() {
            true => format!("e{}", n + 1),
            false => endpoint.id.clone(),
        };
        if id.is_none_or(|id| id == own) {
            endpoint.credential = Some(credential.clone());
            found = true;
        }
    }
    match found {
        true => Ok(()),
        false => bail!(Usage(format!(
            "{flag}: there is no endpoint `{}`; those without a name are `e1`, `e2`, … in the order given",
            id.unwrap_or_default()
        )
        .into())),
    }
}

/// What a file has, but for the line break at its end.
fn token(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file);
    let text = text.with_context(|| format!("{} cannot be read", file.display()))?;
    let token = text.trim_end_matches(['\r', '\n']);
    match token.is_empty() {
        true => bail!("{} is empty; it must have the token", file.display()),
        false => Ok(token.to_owned()),
    }
}

/// In a model of a file, `credentialFile` and `credentialEnv` of an endpoint stand for the token that is there.
pub(crate) fn resolve(model: &mut Value) -> anyhow::Result<()> {
    let endpoints = model.get_mut("endpoints").and_then(Value::as_array_mut);
    for (n, endpoint) in endpoints.into_iter().flatten().enumerate() {
        let Some(fields) = endpoint.as_object_mut() else {
            continue;
        };
        let file = fields.remove("credentialFile");
        let variable = fields.remove("credentialEnv");
        let given = match (file, variable) {
            (None, None) => continue,
            (Some(Value::String(file)), None) => {
                token(Path::new(&file)).with_context(|| format!("endpoints[{n}].credentialFile"))?
            }
            (None, Some(Value::String(name))) => env::var(&name)
                .with_context(|| format!("endpoints[{n}].credentialEnv: variable {name}"))?,
            _ => bail!("endpoints[{n}]: one of `credentialFile` and `credentialEnv`, a text"),
        };
        fields.insert("credential".to_owned(), json!({ "bearerToken": given }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_models_names_where_tokens_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "secret\n").unwrap();
        let mut model = json!({ "id": "m", "endpoints": [
            { "url": "http://a", "credentialFile": file.to_str().unwrap() },
            { "url": "http://b" },
        ]});
        resolve(&mut model).unwrap();
        assert_eq!(model["endpoints"][0]["credential"]["bearerToken"], "secret");
        assert!(model["endpoints"][1].get("credential").is_none());
        assert!(model["endpoints"][0].get("credentialFile").is_none());
        for (field, value) in [
            ("credentialFile", json!("/does/not/exist")),
            ("credentialEnv", json!("FOREBAY_TEST_NO_SUCH_VARIABLE")),
            ("credentialFile", json!(7)),
        ] {
            let mut model = json!({ "endpoints": [{ field: value }] });
            let error = format!("{:#}", resolve(&mut model).unwrap_err());
            assert!(error.contains("endpoints[0]"), "{error}");
        }
    }

    #[test]
    fn one_file_is_for_one_endpoint_or_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "t").unwrap();
        let file = file.to_str().unwrap();
        let endpoints = || vec![wire::Endpoint::default(), wire::Endpoint::default()];
        let with = |named: String| EndpointArgs {
            credential_files: vec![named],
            ..EndpointArgs::default()
        };
        let count = |put: Vec<wire::Endpoint>| {
            put.iter()
                .filter(|endpoint| endpoint.credential.is_some())
                .count()
        };
        assert_eq!(count(put(endpoints(), &with(file.to_owned())).unwrap()), 2);
        let one = put(endpoints(), &with(format!("e2={file}"))).unwrap();
        assert!(one[0].credential.is_none() && one[1].credential.is_some());
        let error = put(endpoints(), &with(format!("e3={file}")))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`e3`"), "{error}");
    }
}
