// Builds hello.js into a component: node build.mjs WIT OUT
import { writeFile } from "node:fs/promises";

import { componentize } from "@bytecodealliance/componentize-js";

const [witPath, out] = process.argv.slice(2);
const { component } = await componentize({ sourcePath: "hello.js", witPath, worldName: "wasi:http/proxy" });
await writeFile(out, component);
