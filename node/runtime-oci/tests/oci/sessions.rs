//! `exec` and `attach`.

use ketch_runtime::{ContainerSpec, Error, PodSandbox, Runtime, Session, Streams, TerminalSize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::rig::{PATIENCE, Rig};

const OUTPUT: Streams = Streams { stdin: false, stdout: true, stderr: true, tty: false };

async fn all(reader: &mut Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>) -> String {
    let mut text = String::new();
    let read = reader.as_mut().expect("a stream").read_to_string(&mut text);
    tokio::time::timeout(PATIENCE, read).await.expect("it ends").unwrap();
    text
}

async fn code(session: Session) -> i32 {
    tokio::time::timeout(PATIENCE, session.exit).await.expect("it ends").expect("it has a code")
}

async fn exec(rig: &Rig, spec: &ContainerSpec, script: &str, streams: Streams) -> Session {
    let command = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    rig.runtime.exec(&spec.id, command, streams).await.expect("exec works")
}

async fn sleeper(rig: &Rig) -> (PodSandbox, ContainerSpec) {
    let pod = rig.made("exec", 2).await;
    let spec = rig.script(&pod, "main", "exec sleep 100000").await;
    rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
    (pod, spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_run_beside_the_containers_own() {
    let Some(rig) = Rig::new().await else { return };
    let (_, spec) = sleeper(&rig).await;
    let mut session = exec(&rig, &spec, "echo out; echo err >&2; exit 5", OUTPUT).await;
    assert_eq!(all(&mut session.stdout).await, "out\n");
    assert_eq!(all(&mut session.stderr).await, "err\n");
    assert_eq!(code(session).await, 5);
    // The end of the input is one, and what was written before it arrives.
    let mut session = exec(&rig, &spec, "cat; echo end", Streams { stdin: true, ..OUTPUT }).await;
    let mut stdin = session.stdin.take().unwrap();
    let text = "line\n".repeat(50_000);
    let sent = text.clone();
    let write = async move {
        stdin.write_all(sent.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let (got, ()) = tokio::join!(all(&mut session.stdout), write);
    assert_eq!(got, text + "end\n");
    assert_eq!(code(session).await, 0);
    // A terminal.
    let tty = Streams { stdin: true, stdout: true, stderr: false, tty: true };
    let mut session =
        exec(&rig, &spec, "while read line; do [ $line = bye ] && exit 3; stty size; done", tty).await;
    session.resize.as_ref().unwrap().send_replace(Some(TerminalSize { width: 123, height: 45 }));
    let mut stdin = session.stdin.take().unwrap();
    let mut lines = BufReader::new(session.stdout.take().unwrap()).lines();
    let sized = async {
        // The size arrives some time after it was set: asked until it is there.
        loop {
            stdin.write_all(b"go\n").await.unwrap();
            // What was typed comes back as well.
            let mut line = "go".to_owned();
            while line.trim() == "go" {
                line = lines.next_line().await.unwrap().expect("it goes on");
            }
            if line.trim() == "45 123" {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, sized).await.expect("the terminal has its size");
    stdin.write_all(b"bye\n").await.unwrap();
    assert_eq!(code(session).await, 3);
    let error = rig.runtime.exec(&spec.id, vec!["/bin/none".into()], OUTPUT).await.err().expect("no program");
    assert!(error.to_string().contains("/bin/none"), "{error}");
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_nobody_listens_to_is_ended() {
    let Some(rig) = Rig::new().await else { return };
    let (_, spec) = sleeper(&rig).await;
    let session = exec(&rig, &spec, "echo > /tmp/up; exec sleep 31337", OUTPUT).await;
    drop(session);
    let gone = async {
        loop {
            let script = "for p in /proc/[0-9]*; do cat $p/cmdline 2>/dev/null; done";
            let mut session = exec(&rig, &spec, script, OUTPUT).await;
            let text = all(&mut session.stdout).await;
            code(session).await;
            if !text.contains("sleep\u{0}31337") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is ended");
    let none = ketch_runtime::ContainerId("none".into());
    let error = rig.runtime.exec(&none, vec!["sh".into()], OUTPUT).await.err().expect("no container");
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_container_can_be_joined() {
    let Some(rig) = Rig::new().await else { return };
    let pod = rig.made("attach", 2).await;
    let mut spec = rig.script(&pod, "main", "read line; echo got $line; read line; exit 4").await;
    spec.stdin = true;
    rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
    let mut session =
        rig.runtime.attach(&spec.id, Streams { stdin: true, ..OUTPUT }).await.expect("attach works");
    let mut stdin = session.stdin.take().unwrap();
    let mut lines = BufReader::new(session.stdout.take().unwrap()).lines();
    stdin.write_all(b"this\n").await.unwrap();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it answers").unwrap();
    assert_eq!(line.as_deref(), Some("got this"));
    stdin.write_all(b"end\n").await.unwrap();
    assert_eq!(code(session).await, 4);
    rig.done().await;
}
