//! The user's token for the Hub, from where the Hub's own tools keep it.

use std::ffi::OsString;
use std::path::PathBuf;

/// `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `token` in `HF_HOME` or in the cache folder of the user.
pub(super) fn from_env() -> Option<String> {
    find(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn find(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<String> {
    let clean = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    if let Some(token) = variable("HF_TOKEN").and_then(|token| clean(token.into_string().ok()?)) {
        return Some(token);
    }
    let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))?;
            Some(cache.join("huggingface"))
        })?;
        Some(home.join("token"))
    })?;
    clean(fs_err::read_to_string(path).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_where_the_hubs_tools_keep_it() {
        let folder = tempfile::tempdir().unwrap();
        let below = |path: &str| folder.path().join(path);
        for (path, token) in
            [("own", "of path\n"), ("hf/token", "of home"), ("user/.cache/huggingface/token", " of user ")]
        {
            fs_err::create_dir_all(below(path).parent().unwrap()).unwrap();
            fs_err::write(below(path), token).unwrap();
        }
        let find = |variables: &[(&str, OsString)]| {
            find(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()))
        };
        let user = ("HOME", below("user").into());
        let home = ("HF_HOME", below("hf").into());
        let path = ("HF_TOKEN_PATH", below("own").into());
        assert_eq!(find(std::slice::from_ref(&user)).as_deref(), Some("of user"));
        assert_eq!(find(&[user.clone(), home.clone()]).as_deref(), Some("of home"));
        assert_eq!(find(&[user.clone(), home.clone(), path.clone()]).as_deref(), Some("of path"));
        assert_eq!(find(&[user, home, path, ("HF_TOKEN", "direct".into())]).as_deref(), Some("direct"));
        assert_eq!(find(&[]), None);
    }
}
