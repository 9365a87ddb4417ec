//! stub
use anyhow::Result;
use ketch_server::Server;
use crate::options::Options;
pub(crate) struct LocalNode;
impl LocalNode {
    pub(crate) fn on_push(_o: &Options) -> Option<ketch_server::PushHook> { None }
    pub(crate) async fn start(_s: &Server, _o: &Options, _l: std::net::TcpListener) -> Result<Self> { Ok(Self) }
    pub(crate) async fn shutdown(self) {}
}
