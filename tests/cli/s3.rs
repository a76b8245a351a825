//! A local S3 server on a folder, from the crate s3s.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

/// The valid credentials.
pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret";

/// A running server; it stops with the test's process.
pub struct Server {
    pub address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts one with a bucket `results`.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("results")).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let root = folder.path().to_path_buf();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(&root, tell));
        });
        Self { address: told.recv().unwrap(), folder }
    }

    /// The file of an object in the bucket.
    pub fn object(&self, name: &str) -> PathBuf {
        self.folder.path().join("results").join(name)
    }

    /// The environment of a client with access.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ACCESS_KEY_ID", KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
        ]
    }
}

async fn serve(root: &Path, tell: std::sync::mpsc::Sender<SocketAddr>) {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    tell.send(listener.local_addr().unwrap()).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service.clone();
        tokio::spawn(async move {
            // Clients may disconnect.
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// moto's server in a process of its own, with a bucket `results`; it asks for no keys.
pub struct Moto {
    child: std::process::Child,
    port: u16,
}

impl Moto {
    /// Starts one where `make moto` has installed it; else says so, and fails where CI must have it.
    #[allow(clippy::print_stdout, reason = "why a test is skipped")]
    pub fn start() -> Option<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(".libtorch/moto/bin/moto_server");
        if !program.exists() {
            assert!(std::env::var("CI").is_err(), "moto's server is missing: `make moto` installs it");
            println!("skipped: moto's server is missing: `make moto` installs it");
            return None;
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = std::process::Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &free.to_string()]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let server = Self { child: command.spawn().unwrap(), port: free };
        let begun = std::time::Instant::now();
        while !server.make_bucket() {
            assert!(begun.elapsed().as_secs() < 60, "moto's server does not answer");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Some(server)
    }

    fn make_bucket(&self) -> bool {
        self.ask("PUT", "").is_some_and(|answer| answer.contains(" 200 "))
    }

    /// An object, as text.
    pub fn object(&self, name: &str) -> String {
        self.ask("GET", &format!("/{name}")).unwrap()
    }

    /// What the server answers to a request for the bucket, or for an object.
    fn ask(&self, method: &str, path: &str) -> Option<String> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        // It looks whether there is a signature, not at it.
        let headers = "Host: 127.0.0.1\r\nAuthorization: AWS a:b\r\nContent-Length: 0";
        let request = format!("{method} /results{path} HTTP/1.0\r\n{headers}\r\n\r\n");
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer)).ok()?;
        Some(answer)
    }

    /// The names in the bucket, of the first thousand.
    pub fn objects(&self) -> Vec<String> {
        let answer = self.ask("GET", "").unwrap();
        let keys = answer.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap().to_owned());
        keys.collect()
    }

    /// The environment of a client.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let address = format!("http://127.0.0.1:{}", self.port);
        let keys =
            [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_REGION", "us-east-1")];
        let keys = keys.into_iter().map(|(name, value)| (name, value.to_owned()));
        keys.chain([("AWS_ENDPOINT_URL", address)]).collect()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
