// The published E2B client for JavaScript, unchanged, against the service (test_e2b_javascript.py).
// TEGU_E2B_JS is a directory with it in node_modules.
'use strict'
const assert = require('node:assert')
const { createRequire } = require('node:module')
const { Sandbox, CommandExitError, FileNotFoundError, TimeoutError } = createRequire(
  process.env.TEGU_E2B_JS + '/'
)('e2b')

const until = async (what) => {
  for (let i = 0; i < 600; i++) {
    if (await what()) return
    await new Promise((done) => setTimeout(done, 50))
  }
  assert.fail('it did not come to that')
}

async function main() {
  const one = await Sandbox.create({ timeoutMs: 120000, envs: { FROM: 'envs' }, metadata: { js: 'yes' } })

  // Commands: foreground, failing, streaming.
  const heard = []
  const done = await one.commands.run('echo $FROM é; echo oops >&2', { onStdout: (t) => heard.push(t) })
  assert.deepStrictEqual([done.exitCode, done.stdout, done.stderr], [0, 'envs é\n', 'oops\n'])
  assert.strictEqual(heard.join(''), done.stdout)
  await assert.rejects(one.commands.run('exit 3'), (e) => e instanceof CommandExitError && e.exitCode === 3)
  await assert.rejects(one.commands.run('sleep 620', { timeoutMs: 800 }), TimeoutError)

  // Background, stdin, list, kill, reconnecting.
  const reader = await one.commands.run('read a; echo got $a; sleep 621', { background: true, stdin: true })
  assert.deepStrictEqual((await one.commands.list()).map((p) => p.pid), [reader.pid])
  await one.commands.sendStdin(reader.pid, 'it\n')
  await until(() => reader.stdout === 'got it\n')
  await reader.disconnect()
  const again = await one.commands.connect(reader.pid)
  assert(await one.commands.kill(reader.pid))
  await assert.rejects(again.wait(), CommandExitError)
  assert(!(await one.commands.kill(reader.pid)))

  // Files.
  await one.files.write('/w/a b.txt', 'héllo')
  assert.strictEqual(await one.files.read('/w/a b.txt'), 'héllo')
  const data = Buffer.alloc(1000000, 'x')
  await one.files.write('/w/data', new Blob([data]))
  assert(Buffer.from(await one.files.read('/w/data', { format: 'bytes' })).equals(data))
  assert.deepStrictEqual((await one.files.list('/w')).map((e) => [e.name, e.type]), [
    ['a b.txt', 'file'],
    ['data', 'file'],
  ])
  const changes = []
  const watch = await one.files.watchDir('/w', (e) => changes.push(`${e.name} ${e.type}`))
  await one.files.rename('/w/data', '/w/moved')
  await one.files.remove('/w/moved')
  await until(() => changes.includes('data rename') && changes.includes('moved remove'))
  await watch.stop()
  assert(await one.files.makeDir('/w/x/y'))
  assert(!(await one.files.exists('/w/moved')))
  assert.strictEqual((await one.files.getInfo('/w/x')).type, 'dir')
  await assert.rejects(one.files.read('/nothing'), FileNotFoundError)
  const url = await one.downloadUrl('/w/a b.txt', { useSignatureExpiration: 60000 })
  assert.strictEqual(await (await fetch(url)).text(), 'héllo')
  const form = new FormData()
  form.append('file', new Blob(['up']), 'ignored')
  assert((await fetch(await one.uploadUrl('/w/up'), { method: 'POST', body: form })).ok)
  assert.strictEqual(await one.files.read('/w/up'), 'up')

  // A terminal.
  let shown = ''
  const decoder = new TextDecoder()
  const terminal = await one.pty.create({ rows: 20, cols: 70, onData: (d) => (shown += decoder.decode(d)) })
  await one.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size\n'))
  await until(() => shown.includes('20 70'))
  await one.pty.resize(terminal.pid, { rows: 30, cols: 90 })
  await one.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size\n'))
  await until(() => shown.includes('30 90'))
  assert(await one.pty.kill(terminal.pid))

  // Its life.
  await one.setTimeout(200000)
  const left = (await one.getInfo()).endAt.getTime() - Date.now()
  assert(left > 100000 && left <= 200000)
  const pages = Sandbox.list({ query: { metadata: { js: 'yes' } }, limit: 1 })
  assert.deepStrictEqual((await pages.nextItems()).map((s) => s.sandboxId), [one.sandboxId])
  assert(!pages.hasNext)
  assert(await one.pause())
  assert(!(await one.isRunning()))
  const resumed = await Sandbox.connect(one.sandboxId)
  assert.strictEqual(await resumed.files.read('/w/up'), 'up')
  assert((await resumed.getMetrics()).length > 0)

  // A sandbox that dies fails its calls at once.
  const waiting = resumed.commands.run('echo up > /up; sleep 622', { timeoutMs: 0 })
  const failed = assert.rejects(waiting, (e) => /was not found: it was killed/.test(e.message))
  await until(() => resumed.files.exists('/up'))
  assert(await resumed.kill())
  await failed
  assert(!(await resumed.isRunning()))
  console.log('all is well')
}

main().catch((e) => {
  console.error(e)
  process.exit(1)
})
