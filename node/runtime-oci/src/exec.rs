//! Programs beside a container's own, through containerd's tasks: standard streams are named pipes, so that
//! the end of input is one, and nothing goes through a streaming server.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use futures::FutureExt;
use ketch_runtime::{Error, Session, Streams, TerminalSize};
use nix::{sys::stat::Mode, unistd::mkfifo};
use prost_types::Any;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::unix::pipe,
    sync::{oneshot, watch},
};
use tokio_util::task::TaskTracker;

use crate::client::{Client, QUICK, SLOW, is_transport, or_gone, scoped};

/// How containerd calls the JSON of a process.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SIGKILL: u32 = 9;

/// A program in a container.
#[derive(Clone, Debug)]
struct Process {
    client: Client,
    container: String,
    id: String,
}

/// Runs `command` in the container that containerd calls `container`. `work` is for pipes.
pub(crate) async fn exec(
    client: &Client,
    tasks: &TaskTracker,
    work: &Path,
    container: &str,
    command: Vec<String>,
    streams: Streams,
) -> Result<Session, Error> {
    if command.is_empty() {
        return Err(Error::Config("there is no command to run".to_owned()));
    }
    let spec = process_of(client, container).await?;
    let pipes = Pipes::new(work, &streams).map_err(broken)?;
    let id = pipes.id();
    let process = Process { client: client.clone(), container: container.to_owned(), id };
    process.create(spec, command, &streams, &pipes).await?;
    if let Err(error) = process.start().await {
        process.delete().await;
        return Err(error);
    }
    Ok(process.session(tasks, pipes, &streams))
}

/// The program the container was made with: its environment, user, capabilities, limits.
async fn process_of(client: &Client, container: &str) -> Result<Value, Error> {
    let request = scoped(GetContainerRequest { id: container.to_owned() });
    let mut containers = client.native().containers();
    let found = client.call("look for the container", QUICK, containers.get(request)).await?;
    let spec = found.container.and_then(|container| container.spec).unwrap_or_default();
    let mut spec: Value = serde_json::from_slice(&spec.value).map_err(|error| {
        Error::Internal(format!("the container's specification is not understood: {error}"))
    })?;
    Ok(spec.get_mut("process").map(Value::take).unwrap_or_default())
}

/// Turns a container's process into that of `command`.
fn adapt(mut process: Value, command: Vec<String>, tty: bool) -> Value {
    if let Some(fields) = process.as_object_mut() {
        fields.remove("consoleSize");
        fields.insert("args".to_owned(), json!(command));
        fields.insert("terminal".to_owned(), json!(tty));
        if tty {
            let mut env = fields.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
            if !env.iter().any(|entry| entry.as_str().is_some_and(|text| text.starts_with("TERM="))) {
                env.push(json!("TERM=xterm"));
            }
            fields.insert("env".to_owned(), Value::Array(env));
        }
    }
    process
}

impl Process {
    async fn create(
        &self,
        spec: Value,
        command: Vec<String>,
        streams: &Streams,
        pipes: &Pipes,
    ) -> Result<(), Error> {
        let value = serde_json::to_vec(&adapt(spec, command, streams.tty))
            .map_err(|error| Error::Internal(error.to_string()))?;
        let path = |name: &str| pipes.dir.path().join(name).to_string_lossy().into_owned();
        // The shim opens every output that there is.
        let output = |wanted: bool, name: &str| if wanted { path(name) } else { "/dev/null".to_owned() };
        let request = scoped(ExecProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            stdin: if streams.stdin { path("stdin") } else { String::new() },
            stdout: output(pipes.stdout.is_some(), "stdout"),
            stderr: if streams.tty { String::new() } else { output(pipes.stderr.is_some(), "stderr") },
            terminal: streams.tty,
            spec: Some(Any { type_url: PROCESS.to_owned(), value }),
        });
        let mut tasks = self.client.tasks();
        let made = self.client.call("run a program", QUICK, tasks.exec(request)).await;
        made.map(drop).map_err(|error| match error {
            Error::NotFound(_) => Error::NotFound("the container is not running".to_owned()),
            other => other,
        })
    }

    async fn start(&self) -> Result<(), Error> {
        let request = scoped(StartRequest { container_id: self.container.clone(), exec_id: self.id.clone() });
        let mut tasks = self.client.tasks();
        self.client.call("run a program", SLOW, tasks.start(request)).await.map(drop)
    }

    async fn delete(&self) {
        let request =
            scoped(DeleteProcessRequest { container_id: self.container.clone(), exec_id: self.id.clone() });
        let mut tasks = self.client.tasks();
        let gone = self.client.call("forget a program", SLOW, tasks.delete_process(request)).await;
        if let Err(error) = or_gone(gone.map(drop)) {
            tracing::debug!(%error, "a program that ended stays in containerd's list");
        }
    }

    async fn kill(&self) {
        let request = scoped(KillRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            signal: SIGKILL,
            all: false,
        });
        let mut tasks = self.client.tasks();
        if let Err(error) =
            or_gone(self.client.call("end a program", QUICK, tasks.kill(request)).await.map(drop))
        {
            tracing::debug!(%error, "a program could not be ended");
        }
    }

    async fn close_input(&self) {
        let request = scoped(CloseIoRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            stdin: true,
        });
        let mut tasks = self.client.tasks();
        // It has ended, then.
        _ = self.client.call("end the input of a program", QUICK, tasks.close_io(request)).await;
    }

    async fn resize(&self, size: TerminalSize) {
        let request = scoped(ResizePtyRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
            width: size.width.into(),
            height: size.height.into(),
        });
        let mut tasks = self.client.tasks();
        _ = self.client.call("resize a terminal", QUICK, tasks.resize_pty(request)).await;
    }

    /// The exit code; a containerd that restarts meanwhile is asked again.
    async fn wait(&self) -> Result<i32, Error> {
        let mut patience = 100_u32;
        loop {
            let request =
                scoped(WaitRequest { container_id: self.container.clone(), exec_id: self.id.clone() });
            match self.client.tasks().wait(request).await {
                Ok(reply) => return Ok(i32::try_from(reply.into_inner().exit_status).unwrap_or(255)),
                Err(status) if is_transport(&status) && patience > 0 => {
                    patience -= 1;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                Err(status) => {
                    return Err(Error::Internal(format!("the program was lost: {}", status.message())));
                }
            }
        }
    }

    /// Streams of a program that runs.
    fn session(self, tasks: &TaskTracker, mut pipes: Pipes, streams: &Streams) -> Session {
        let (resize, sizes) = watch::channel(None);
        let (input_ended, ended) = oneshot::channel();
        let (exit, code) = oneshot::channel();
        let (hold, dropped) = oneshot::channel::<()>();
        pipes.started();
        let stdin = pipes.stdin.take().map(|pipe| Input { pipe: Some(pipe), ended: Some(input_ended) });
        let stdout = pipes.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn AsyncRead + Send + Unpin>);
        let stderr = pipes.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn AsyncRead + Send + Unpin>);
        let has_input = stdin.is_some();
        tasks.spawn(async move {
            let result = self.attend(sizes, has_input.then_some(ended), dropped).await;
            pipes.held_input = None;
            _ = exit.send(result);
            self.delete().await;
            drop(pipes);
        });
        let exit = async move {
            let result =
                code.await.unwrap_or_else(|_| Err(Error::Internal("the node is stopping".to_owned())));
            drop(hold);
            result
        };
        Session {
            stdin: stdin.map(|input| Box::new(input) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout,
            stderr,
            resize: streams.tty.then_some(resize),
            exit: exit.boxed(),
        }
    }

    /// Does what the session asks for until the program ends.
    async fn attend(
        &self,
        mut sizes: watch::Receiver<Option<TerminalSize>>,
        input_ended: Option<oneshot::Receiver<()>>,
        dropped: oneshot::Receiver<()>,
    ) -> Result<i32, Error> {
        let mut wait = std::pin::pin!(self.wait());
        let mut dropped = std::pin::pin!(dropped.fuse());
        let input = async {
            match input_ended {
                Some(ended) => _ = ended.await,
                None => std::future::pending().await,
            }
        };
        let mut input = std::pin::pin!(input.fuse());
        let mut resizable = true;
        loop {
            tokio::select! {
                result = &mut wait => return result,
                _ = &mut dropped, if !futures::future::FusedFuture::is_terminated(&dropped) => self.kill().await,
                () = &mut input, if !futures::future::FusedFuture::is_terminated(&input) => self.close_input().await,
                changed = sizes.changed(), if resizable => {
                    resizable = changed.is_ok();
                    let size = *sizes.borrow_and_update();
                    if let Some(size) = size.filter(|_| resizable) {
                        self.resize(size).await;
                    }
                }
            }
        }
    }
}

/// The named pipes of a program.
struct Pipes {
    dir: tempfile::TempDir,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    /// Other ends, held until the program's are open: a pipe without them is at its end, or broken.
    held: Vec<pipe::Sender>,
    held_input: Option<pipe::Receiver>,
}

impl Pipes {
    fn new(work: &Path, streams: &Streams) -> io::Result<Self> {
        std::fs::create_dir_all(work)?;
        let dir = tempfile::Builder::new().prefix("exec-").tempdir_in(work)?;
        let mut pipes =
            Self { dir, stdin: None, stdout: None, stderr: None, held: Vec::new(), held_input: None };
        let named = |pipes: &Self, name: &str| {
            let path = pipes.dir.path().join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map(|()| path).map_err(io::Error::from)
        };
        if streams.stdin {
            let path = named(&pipes, "stdin")?;
            pipes.held_input = Some(pipe::OpenOptions::new().open_receiver(&path)?);
            pipes.stdin = Some(pipe::OpenOptions::new().open_sender(&path)?);
        }
        if streams.stdout || streams.tty {
            let path = named(&pipes, "stdout")?;
            pipes.stdout = Some(pipe::OpenOptions::new().open_receiver(&path)?);
            pipes.held.push(pipe::OpenOptions::new().open_sender(&path)?);
        }
        if streams.stderr && !streams.tty {
            let path = named(&pipes, "stderr")?;
            pipes.stderr = Some(pipe::OpenOptions::new().open_receiver(&path)?);
            pipes.held.push(pipe::OpenOptions::new().open_sender(&path)?);
        }
        Ok(pipes)
    }

    /// When the program runs: it has its ends of the outputs by now. That of the input is opened at some time after
    /// the start, and held until the end.
    fn started(&mut self) {
        self.held.clear();
    }

    /// A name for the program: that of its directory, which is unique.
    fn id(&self) -> String {
        let name = self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{name}-{}", std::process::id())
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: io::Error) -> Error {
    Error::Internal(format!("make pipes for a program: {error}"))
}

/// A program's standard input. Shut down or dropped, it tells containerd too, which holds the pipe open.
struct Input {
    pipe: Option<pipe::Sender>,
    ended: Option<oneshot::Sender<()>>,
}

impl Input {
    fn end(&mut self) {
        self.pipe = None;
        if let Some(ended) = self.ended.take() {
            _ = ended.send(());
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Some(pipe) => Pin::new(pipe).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn input_waits_for_the_programs_end_of_its_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
        let mut pipes = Pipes::new(dir.path(), &streams).unwrap();
        pipes.started();
        pipes.stdin.as_mut().unwrap().write_all(b"early").await.unwrap();
        let mut late = pipe::OpenOptions::new().open_receiver(pipes.dir.path().join("stdin")).unwrap();
        let mut bytes = [0; 5];
        late.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"early");
        // An output is at its end when the program is.
        assert_eq!(pipes.stdout.as_mut().unwrap().read(&mut bytes).await.unwrap(), 0);
    }

    #[test]
    fn a_program_has_the_containers_rights_and_its_own_arguments() {
        let container = json!({"args": ["nginx"], "user": {"uid": 7}, "env": ["A=1"], "consoleSize": {}});
        let made = adapt(container.clone(), vec!["sh".into()], true);
        assert_eq!(made["args"], json!(["sh"]));
        assert_eq!(made["user"]["uid"], 7);
        assert_eq!(made["env"], json!(["A=1", "TERM=xterm"]));
        assert_eq!(made["terminal"], true);
        assert!(made.get("consoleSize").is_none());
        assert_eq!(adapt(container, vec!["sh".into()], false)["env"], json!(["A=1"]));
    }
}
