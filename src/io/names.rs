//! Names of files in lists of others: captions, archives.

/// A relative path in its shortest form, `/` between its parts.
///
/// # Errors
/// Why the name is refused: it could lead outside the folder that it is relative to, or names no file.
pub fn inside(name: &str) -> Result<String, &'static str> {
    if name.contains('\0') {
        return Err("it contains a zero byte");
    }
    if name.starts_with('/') {
        return Err("its path is absolute");
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("its path contains `..`");
    }
    if parts.is_empty() {
        return Err("it is empty");
    }
    Ok(parts.join("/"))
}
