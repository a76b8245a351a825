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
