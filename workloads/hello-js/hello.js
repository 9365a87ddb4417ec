// Answers every request with a greeting; built by componentize-js.
addEventListener("fetch", (event) => event.respondWith(handle(event.request)));

async function handle(request) {
  const { pathname } = new URL(request.url);
  console.log(`${request.method} ${pathname}`);
  if (pathname === "/echo") {
    return new Response(await request.text(), { headers: { "content-type": "text/plain" } });
  }
  return new Response("Hello from JavaScript\n", { headers: { "content-type": "text/plain" } });
}
