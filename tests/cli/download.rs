//! Downloads through the real program: from servers, with faults, kills and changes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::project::{Ran, command, files};
use crate::server::{Fault, Server, sha256};

const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";
const LATER: &str = "ffeeddccbbaa99887766554433221100ffeeddcc";

/// A project with one stage that downloads.
struct Project {
    folder: TempDir,
    endpoint: String,
    token: Option<&'static str>,
}

impl Project {
    fn new(hub: &Server) -> Self {
        let project = Self { folder: tempfile::tempdir().unwrap(), endpoint: hub.url(""), token: None };
        fs_err::create_dir(project.root().join("pipelines")).unwrap();
        project
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the stage download these, each a table without its braces.
    fn get(&self, files: &[&str]) {
        let files: Vec<String> = files.iter().map(|file| format!("{{ {file} }}")).collect();
        let files = files.join(", ");
        let text = format!("[stages.get]\nkind = \"download\"\nparams = {{ files = [{files}] }}\n");
        fs_err::write(self.root().join("pipelines/p.toml"), text).unwrap();
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), self.root());
        run.args(["run", "pipelines/p.toml", "--json", "--device", "cpu", "-vvv"]).args(arguments);
        run.env("HF_ENDPOINT", &self.endpoint).env_remove("HF_TOKEN").env("HF_HOME", self.root());
        if let Some(token) = self.token {
            run.env("HF_TOKEN", token);
        }
        run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn try_run(&self, arguments: &[&str]) -> Ran {
        self.start(arguments).wait_with_output().unwrap().into()
    }

    fn run(&self) -> Ran {
        let ran = self.try_run(&[]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran
    }

    /// Runs, and expects a failure with these texts.
    fn fails(&self, parts: &[&str]) {
        let ran = self.try_run(&[]);
        assert_eq!(ran.code, 1, "{ran:?}");
        for part in parts {
            assert!(error(&ran).contains(part), "{part}: {}", error(&ran));
        }
        assert!(
            !self.root().join("results/p/get").exists()
                && files(&self.root().join("cache/objects")).is_empty()
        );
    }

    /// The files of the result by their paths.
    fn result(&self) -> Vec<(String, Vec<u8>)> {
        let found = files(&self.root().join("results/p/get/files"));
        found.into_iter().map(|(name, path)| (name, fs_err::read(path).unwrap())).collect()
    }

    /// What is left in the folder of downloads.
    fn downloads(&self) -> Vec<String> {
        files(&self.root().join("cache/downloads")).into_keys().collect()
    }

    fn lock(&self) -> String {
        fs_err::read_to_string(self.root().join("attrflow.lock")).unwrap_or_default()
    }

    /// Removes a line of the lock file.
    fn unpin(&self, part: &str) {
        let text: Vec<String> =
            self.lock().lines().filter(|line| !line.contains(part)).map(str::to_owned).collect();
        fs_err::write(self.root().join("attrflow.lock"), text.join("\n")).unwrap();
    }

    fn forget_results(&self) {
        fs_err::remove_dir_all(self.root().join("cache/recipes-v2")).unwrap();
        let objects = self.root().join("cache/objects");
        assert!(std::process::Command::new("rm").arg("-rf").arg(objects).status().unwrap().success());
        fs_err::remove_dir_all(self.root().join("results")).unwrap();
    }
}

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|index| (index * index * 31 + index * seed) as u8).collect()
}

fn file(name: &str, content: &[u8]) -> (String, Vec<u8>) {
    (name.to_owned(), content.to_vec())
}

/// The error of the stage.
fn error(ran: &Ran) -> String {
    ran.events("stage_failed", "error").concat()
}

/// A sample archive of another program, split into three volumes.
fn volumes() -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/archive");
    (1..=3).map(|number| fs_err::read(golden.join(format!("sample.7z.{number:03}"))).unwrap()).collect()
}

#[test]
fn a_killed_download_resumes() {
    let content = bytes(400_000, 7);
    let slow = Fault::Slow { chunk: 4000, pause: Duration::from_millis(20) };
    let server = Server::new().file("/big", content.clone()).fault("/big", slow);
    let project = Project::new(&server);
    project.get(&[&format!("from = \"{}\"", server.url("/big"))]);
    let begun = Instant::now();
    let mut run = project.start(&[]);
    let part = || {
        let found = files(&project.root().join("cache/downloads"));
        let part = found.into_iter().find(|(name, _)| name.ends_with(".part"));
        part.map_or(0, |(_, path)| fs_err::metadata(path).unwrap().len())
    };
    while part() < 40_000 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was downloaded");
        std::thread::sleep(Duration::from_millis(5));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    project.run();
    assert_eq!(project.result(), [file("big", &content)]);
    let ranges = server.ranges("/big");
    let start = ranges[1].as_ref().unwrap().strip_prefix("bytes=").unwrap().trim_end_matches('-');
    assert!(ranges.len() == 2 && start.parse::<u64>().unwrap() >= 40_000, "{ranges:?}");
    assert!(server.asked().last().unwrap().if_range.is_some());
    assert_eq!(project.downloads(), [""; 0]);
    assert!(project.lock().contains(&format!("{{ sha256 = \"{}\", bytes = 400000 }}", sha256(&content))));
}

#[test]
fn a_hub_folder_and_volumes_selected_by_a_pattern() {
    let volumes = volumes();
    let (one, two, three) = (volumes[0].as_slice(), volumes[1].as_slice(), volumes[2].as_slice());
    let server = Server::new().page(2).hub_dataset(
        "o/r",
        COMMIT,
        &[
            ("README.md", b"read me"),
            ("mscoco/sample/a.bin", b"a"),
            ("mscoco/sample/deep/b.txt", b"b"),
            ("mscoco/parts/x.7z.003", three),
            ("mscoco/parts/x.7z.001", one),
            ("mscoco/parts/x.7z.002", two),
        ],
    );
    let project = Project::new(&server);
    project.get(&[
        "from = \"hf://datasets/o/r/mscoco/sample\"",
        "from = \"hf://datasets/o/r/mscoco/sample/\", to = \"again\"",
        "from = \"hf://datasets/o/r/README.md\", to = \"about/it.md\"",
        "from = \"hf://datasets/o/r/mscoco/parts/x.7z.*\", unpack = true, to = \"unpacked\"",
    ]);
    project.run();
    let names: Vec<String> = project.result().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "about/it.md",
            "again/a.bin",
            "again/deep/b.txt",
            "sample/a.bin",
            "sample/deep/b.txt",
            "unpacked/none.txt",
            "unpacked/sample/0.txt",
            "unpacked/sample/numbers"
        ]
    );
    assert_eq!(project.result()[2], file("again/deep/b.txt", b"b"));
    assert_eq!(project.downloads(), [""; 0]);
    let lock = project.lock();
    assert!(lock.contains(&format!("[hub]\n\"datasets/o/r@main\" = \"{COMMIT}\"\n")), "{lock}");
    let pin = format!("\"hf://datasets/o/r@main/mscoco/parts/x.7z.001\" = {{ sha256 = \"{}\"", sha256(one));
    assert!(lock.contains(&pin), "{lock}");
    assert_eq!(lock.lines().filter(|line| line.starts_with("\"hf://")).count(), 6, "{lock}");
}

#[test]
fn faults_of_servers_are_handled() {
    let (one, two) = (bytes(300_000, 1), bytes(5000, 2));
    let server = Server::new()
        .file("/one", one.clone())
        .fault("/one", Fault::Drop { after: 100_000, times: 2 })
        .fault("/one", Fault::NoTag)
        .file("/two", two.clone())
        .fault("/two", Fault::Status { code: 503, retry_after: Some(1), times: 1 })
        .fault("/two", Fault::NoLength);
    let project = Project::new(&server);
    let from = |path: &str| {
        format!(
            "from = \"{}\", sha256 = \"{}\"",
            server.url(path),
            sha256(if path == "/one" { &one } else { &two })
        )
    };
    project.get(&[&from("/one"), &from("/two")]);
    project.run();
    assert_eq!(project.result(), [file("one", &one), file("two", &two)]);
    let ranges = [None, Some("bytes=100000-".to_owned()), Some("bytes=200000-".to_owned())];
    assert_eq!(server.ranges("/one"), ranges);
    assert_eq!(project.lock(), "", "the pipeline has their digests");
}

#[test]
fn wrong_bytes_leave_nothing() {
    let server = Server::new().file("/one", bytes(5000, 1)).file("/two", bytes(5000, 2)).hub_dataset(
        "o/r",
        COMMIT,
        &[("x.bin", b"abc")],
    );
    let project = Project::new(&server);
    let wrong = "0".repeat(64);
    let (one, two) = (server.url("/one?key=hush"), server.url("/two"));
    project.get(&[&format!("from = \"{two}\""), &format!("from = \"{one}\", sha256 = \"{wrong}\"")]);
    let shown = format!("{}?", server.url("/one"));
    project.fails(&[&shown, &format!(": sha256 {}, expected {wrong}", sha256(&bytes(5000, 1)))]);
    let ran = project.try_run(&[]);
    assert!(!error(&ran).contains("hush") && !ran.err.contains("hush"), "{ran:?}");
    assert_eq!(project.lock(), "");
    assert!(!project.downloads().iter().any(|name| name.ends_with(".part")), "{:?}", project.downloads());
    // The digest of a file on the Hub is known before its download.
    server.forget();
    project.get(&[&format!("from = \"hf://datasets/o/r/x.bin\", sha256 = \"{wrong}\"")]);
    project.fails(&["hf://datasets/o/r@main/x.bin: the Hub has sha256 ba7816bf", &wrong]);
    assert!(!server.asked().iter().any(|asked| asked.path.contains("resolve")));
    // An invalid archive is downloaded again: it may have been an error page.
    project.get(&[&format!("from = \"{two}\", unpack = true")]);
    project.fails(&[&two, "expected a zip, tar, tar.gz or 7z archive"]);
    // The commit of the branch is pinned although the file failed.
    assert!(!project.lock().contains("[files]") && project.lock().contains(COMMIT), "{}", project.lock());
}

#[test]
fn the_first_content_of_an_address_is_pinned() {
    let server = Server::new().file("/f", b"first").hub_dataset(
        "o/r",
        COMMIT,
        &[("x.bin", b"first"), ("y.txt", b"y")],
    );
    let project = Project::new(&server);
    let (url, hub) = (server.url("/f"), "hf://datasets/o/r/");
    project.get(&[&format!("from = \"{url}\""), &format!("from = \"{hub}\"")]);
    project.run();
    server.put("/f", b"second".as_slice());
    server.put_repo("datasets/o/r", LATER, &[("x.bin", b"second"), ("y.txt", b"y")]);
    project.forget_results();
    let line = 1 + project.lock().lines().position(|line| line.starts_with(&format!("\"{url}\""))).unwrap();
    let message = format!(
        "{url}: sha256 {}, expected {}, pinned by attrflow.lock:{line} since the first download: remove that line",
        sha256(b"second"),
        sha256(b"first")
    );
    project.fails(&[&message]);
    project.unpin(&url);
    server.forget();
    project.run();
    // The Hub's files are those of the pinned commit, without a request for the revision.
    let result = [file("f", b"second"), file("r/x.bin", b"first"), file("r/y.txt", b"y")];
    assert_eq!(project.result(), result);
    assert!(!server.asked().iter().any(|asked| asked.path.contains("/revision/")));
    project.forget_results();
    project.unpin("datasets/o/r@main\"");
    project.fails(&["@main/x.bin: the Hub has sha256", "since the first download: remove that line"]);
    project.unpin("x.bin");
    project.run();
    assert_eq!(project.result()[1], file("r/x.bin", b"second"));
    assert!(project.lock().contains(LATER));
    // Pins are not hashed: with cached results, nothing is requested.
    server.forget();
    project.unpin("hf://");
    project.run();
    assert!(server.asked().is_empty());
}

#[test]
fn a_token_is_sent_only_to_the_hub() {
    let cdn = Server::new();
    let hub = Server::new()
        .hub_dataset("o/r", COMMIT, &[("x.bin", b"large"), ("y.txt", b"small")])
        .cdn(&cdn)
        .token("hf_do_not_tell");
    let mut project = Project::new(&hub);
    project.get(&["from = \"hf://datasets/o/r\", to = \"all\""]);
    project.fails(&["hf://datasets/o/r@main: the Hub answered 401", "private or gated: set HF_TOKEN"]);
    project.token = Some("hf_do_not_tell");
    let ran = project.run();
    assert_eq!(project.result(), [file("all/x.bin", b"large"), file("all/y.txt", b"small")]);
    assert_eq!(cdn.asked().len(), 1);
    assert_eq!(cdn.asked()[0].authorization, None);
    assert!(!ran.out.contains("do_not_tell") && !ran.err.contains("do_not_tell"), "{ran:?}");
    for (name, path) in files(project.root()) {
        let text = fs_err::read(path).unwrap();
        let contains = |secret: &[u8]| text.windows(secret.len()).any(|window| window == secret);
        assert!(!contains(b"do_not_tell") && !contains(b"signature"), "{name}");
    }
    project.token = Some("hf_wrong");
    project.forget_results();
    project.fails(&["the token that was sent has no access to it"]);
}

#[test]
fn the_secrets_of_an_address_are_stored_nowhere() {
    let server = Server::new().file("/f", b"first");
    let project = Project::new(&server);
    let signed = |signature: &str| {
        let address = server.url(&format!("/f?X-Amz-Signature={signature}&X-Amz-Date=1"));
        let address = address.replace("http://", "http://me:hush@");
        project.get(&[&format!("from = \"{address}\"")]);
    };
    signed("hush1");
    let ran = project.run();
    assert_eq!(project.result(), [file("f", b"first")]);
    assert!(!ran.out.contains("hush") && !ran.err.contains("hush"), "{ran:?}");
    for (name, path) in files(project.root()) {
        let text = fs_err::read(path).unwrap();
        let contains = text.windows(4).any(|window| window == b"hush");
        assert!(name == "pipelines/p.toml" || !contains, "{name}");
    }
    // A renewed signature is the same file.
    let asked = server.asked().len();
    signed("hush2");
    project.run();
    assert_eq!(server.asked().len(), asked);
}

#[test]
fn a_download_that_does_not_fit_is_not_started() {
    let server = Server::new()
        .file("/huge", b"small")
        .fault("/huge", Fault::Claims(3_000_000_000_000_000_000))
        .file("/f", b"f");
    let project = Project::new(&server);
    project
        .get(&[&format!("from = \"{}\"", server.url("/f")), &format!("from = \"{}\"", server.url("/huge"))]);
    project.fails(&["no space to download: ", "cache/downloads: 3.00 EB needed, ", " free"]);
    assert!(server.ranges("/huge").is_empty() && server.ranges("/f").is_empty());
}

#[test]
fn files_are_downloaded_in_parallel_and_placed_in_order() {
    let slow = Fault::Slow { chunk: 1000, pause: Duration::from_millis(100) };
    let paths: Vec<String> = (0..5).map(|index| format!("/{index}")).collect();
    let mut server = Server::new();
    for (index, path) in paths.iter().enumerate() {
        server = server.file(path, bytes(5000, index)).fault(path, slow.clone());
    }
    let project = Project::new(&server);
    let from: Vec<String> = paths.iter().map(|path| format!("from = \"{}\"", server.url(path))).collect();
    let from: Vec<&str> = from.iter().map(String::as_str).collect();
    project.get(&from);
    let ran = project.try_run(&["--download-jobs", "3"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(server.most_at_work(), 3);
    assert_eq!(project.result().len(), 5);
    let progress = ran.json().into_iter().filter(|line| line["event"] == "progress");
    let progress: Vec<_> = progress.map(|line| (line["done"].as_u64(), line["total"].as_u64())).collect();
    assert!(progress.len() > 1 && progress.is_sorted(), "{progress:?}");
    assert!(progress.iter().all(|(_, total)| *total == Some(25_000)), "{progress:?}");
    // Invalid lists are refused before the run.
    project.get(&[from[4], &format!("{}, to = \"4\"", from[0])]);
    let ran = project.try_run(&[]);
    assert!(ran.code == 2 && ran.err.contains("error: two files would become `4`\n"), "{ran:?}");
    let wrong = project.try_run(&["--download-jobs", "0"]);
    assert!(wrong.code == 2 && wrong.err.contains("1..=64"), "{wrong:?}");
}

#[test]
fn an_archive_that_failed_to_unpack_is_not_downloaded_again() {
    let volumes = volumes();
    let server = Server::new();
    for (index, volume) in volumes.iter().enumerate() {
        server.put(&format!("/x.7z.00{}", index + 1), volume.clone());
    }
    let project = Project::new(&server);
    let from = |path: &str| format!("from = \"{}\", unpack = true", server.url(path));
    let taken = "from = \"../taken\", to = \"sample\"";
    fs_err::write(project.root().join("taken"), "x").unwrap();
    // A file is at the path of the archive's folder, so unpacking fails after the download.
    project.get(&[taken, &from("/x.7z.001"), &from("/x.7z.002"), &from("/x.7z.003")]);
    assert_eq!(project.try_run(&[]).code, 1);
    assert_eq!(project.downloads().iter().filter(|name| name.ends_with(".file")).count(), 3);
    server.forget();
    project.get(&[&from("/x.7z.001"), &from("/x.7z.002"), &from("/x.7z.003")]);
    project.run();
    assert!(server.asked().is_empty(), "{:?}", server.asked());
    assert_eq!(project.result().len(), 3);
    assert_eq!(project.downloads(), [""; 0]);
}

#[test]
fn two_runs_share_a_download() {
    let slow = Fault::Slow { chunk: 1000, pause: Duration::from_millis(20) };
    let server = Server::new().file("/f", bytes(50_000, 3)).fault("/f", slow);
    let project = Project::new(&server);
    project.get(&[&format!("from = \"{}\"", server.url("/f"))]);
    let mut first = project.start(&[]);
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"progress\"")));
    let rest = std::thread::spawn(move || lines.count());
    project.run();
    assert!(first.wait().unwrap().success());
    rest.join().unwrap();
    assert_eq!(server.ranges("/f"), [None]);
    assert_eq!(project.result(), [file("f", &bytes(50_000, 3))]);
}
