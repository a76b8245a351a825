//! Sources that are no plain files, and sources that change: what is hashed, what is refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use attrflow_engine::identity::digest::Digest;
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::store::{Store, digest_of};

use crate::in_process::Fault;
use crate::project::{Project, project};

fn mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn error(project: &Project) -> String {
    project.run(&[]).stage("first").error.clone().unwrap().replace(project.root.to_str().unwrap(), "PROJECT")
}

#[test]
fn the_permission_to_execute_is_hashed_and_no_other() {
    let project = project();
    project.run(&[]);
    let source = project.path("source.txt");
    let plain = Digest::of_file(&source).unwrap();
    mode(&source, 0o755);
    let program = Digest::of_file(&source).unwrap();
    assert_ne!(plain, program);
    assert!(project.run(&[]).ran().contains(&"first"));
    for same in [0o700, 0o777, 0o500] {
        mode(&source, same);
        assert_eq!(Digest::of_file(&source).unwrap(), program, "{same:o}");
    }
    mode(&source, 0o646);
    assert_eq!(Digest::of_file(&source).unwrap(), plain);
    assert_eq!(project.run(&[]).ran(), Vec::<&str>::new());
}

#[test]
fn empty_folders_are_not_hashed() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::create_dir(folder.path().join("a")).unwrap();
    fs_err::write(folder.path().join("a/file"), "x").unwrap();
    let before = digest_of(folder.path()).unwrap();
    fs_err::create_dir_all(folder.path().join("a/b/c")).unwrap();
    assert_eq!(digest_of(folder.path()).unwrap(), before);
    fs_err::write(folder.path().join("a/b/c/file"), "").unwrap();
    assert_ne!(digest_of(folder.path()).unwrap(), before);
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let project = project();
    let source = project.path("source.txt");
    let replaced = |make: &dyn Fn(&Path)| {
        fs_err::remove_file(&source).unwrap();
        make(&source);
        error(&project)
    };
    let fifo = replaced(&|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap());
    assert!(fifo.contains("PROJECT/source.txt: found a FIFO, expected a file or folder"), "{fifo}");
    let socket = replaced(&|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()));
    assert!(socket.contains("found a socket"), "{socket}");
    let device = replaced(&|path| std::os::unix::fs::symlink("/dev/zero", path).unwrap());
    assert!(device.contains("found a character device"), "{device}");
    // The same in a folder, also behind a link.
    fs_err::remove_file(&source).unwrap();
    fs_err::create_dir(&source).unwrap();
    std::os::unix::fs::symlink("/dev/full", source.join("link")).unwrap();
    assert!(error(&project).contains("source.txt/link: found a character device"));
}

#[test]
fn a_name_that_is_not_utf8_is_refused() {
    let project = project();
    let source = project.path("source.txt");
    fs_err::remove_file(&source).unwrap();
    fs_err::create_dir(&source).unwrap();
    fs_err::write(source.join(OsStr::from_bytes(b"a\xffb")), "x").unwrap();
    assert!(error(&project).contains("the name is not UTF-8"));
}

#[test]
fn a_source_that_is_changed_and_changed_back_fails_its_stage() {
    let mut project = project();
    let source = project.path("source.txt");
    project.backend.fault = Some(("say".into(), Fault::ChangesBack(source, "others".into())));
    let ran = project.run_targets(&["first"]);
    assert_eq!(ran.with(Outcome::Failed), ["first"]);
    let error = ran.stage("first").error.clone().unwrap();
    assert!(error.starts_with("the input `a` changed while it was read"), "{error}");
    project.backend.fault = None;
    assert_eq!(project.run_targets(&["first"]).ran(), ["first"]);
}

#[test]
fn a_change_taken_back_is_noticed_behind_links_and_of_other_names() {
    for name in ["link", "folder/link", "hard", "folder/hard"] {
        let mut project = project();
        let (source, real) = (project.path("source.txt"), project.path("elsewhere/real.txt"));
        project.write("elsewhere/real.txt", "source\n");
        fs_err::remove_file(&source).unwrap();
        let at = match name.strip_prefix("folder/") {
            Some(_) => {
                fs_err::create_dir(&source).unwrap();
                source.join("a.txt")
            }
            None => source,
        };
        match name.ends_with("link") {
            true => std::os::unix::fs::symlink(&real, &at).unwrap(),
            false => fs_err::hard_link(&real, &at).unwrap(),
        }
        project.backend.fault = Some(("say".into(), Fault::ChangesBack(real, "others".into())));
        let ran = project.run_targets(&["first"]);
        let error = ran.stage("first").error.clone().unwrap_or_default();
        assert!(error.starts_with("the input `a` changed while it was read"), "{name}: {error}");
    }
}

#[test]
fn an_adopted_file_that_is_changed_and_changed_back_fails_its_reader() {
    let mut project = project();
    project.run_targets(&["first"]);
    project.write("mine/a.txt", "source\na");
    let mine = project.path("mine/a.txt");
    project.adopt_set(&[], "first", &mine, true).unwrap();
    project.backend.fault = Some(("say".into(), Fault::ChangesBack(mine, "others".into())));
    let ran = project.run_targets(&["second"]);
    assert_eq!(ran.with(Outcome::Failed), ["second"]);
    let error = ran.stage("second").error.clone().unwrap();
    assert!(error.contains("changed while it was read: ") && error.ends_with("mine/a.txt"), "{error}");
}

#[test]
fn a_cache_behind_a_link_is_seen_in_every_way() {
    let mut project = project();
    fs_err::create_dir_all(project.path("disk")).unwrap();
    std::os::unix::fs::symlink(project.path("disk"), project.path("cache")).unwrap();
    project.run(&[]);
    let of = |cache: &Path| {
        let store = Store::open(cache).unwrap();
        let inventory = attrflow_engine::maintenance::Inventory::of(&store).unwrap();
        (inventory.disk.objects.len(), inventory.disk.total().bytes)
    };
    let linked = of(&project.cache);
    assert!(linked.0 > 0);
    assert_eq!(linked, of(&project.path("disk")));
    project.cache = project.path("disk");
    assert_eq!(project.run(&[]).ran(), Vec::<&str>::new());
}
