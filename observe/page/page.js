"use strict";

// The stream sends everything once ("all") and then what changes ("changes"), once per interval. Rates come from the
// difference of two reports. All text reaches the page as textContent.

const points = 180; // how many points a plot has
const step = 50;    // how many rows are added at a time
const severity = {unreachable: 0, impaired: 1, connecting: 2, stopped: 3, connected: 4, idle: 5};
const devices = [];
let offset = 0;     // how far the server's clock is ahead of this browser's, in ms
let last = 0;       // the Unix time of the last report in ms, by the server's clock
let colors = {};

const $ = (selector, from = document) => from.querySelector(selector);
function set(node, text) { if (node.textContent !== text) node.textContent = text; }
function size(n) {
	const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
	let u = 0;
	while (n >= 1000 && u < units.length - 1) { n /= 1024; u++; }
	return (u === 0 ? Math.round(n) : n < 10 ? n.toFixed(2) : n < 100 ? n.toFixed(1) : Math.round(n)) + "\u00a0" + units[u];
}
function ago(ms) {
	if (!ms) return "never";
	const s = Math.max(0, Math.round((Date.now() + offset - ms) / 1000));
	if (s < 1) return "now";
	if (s < 120) return s + "\u00a0s ago";
	if (s < 7200) return Math.round(s / 60) + "\u00a0min ago";
	if (s < 172800) return Math.round(s / 3600) + "\u00a0h ago";
	return Math.round(s / 86400) + "\u00a0days ago";
}
function number(n) { return n.toLocaleString("en"); }
function count(n, one, many) { return number(n) + "\u00a0" + (n === 1 ? one : many); }
const nothing = {flows: 0, opened: 0, refused: 0, failed: 0, dropped: 0, pings: 0, from_peer: 0, to_peer: 0}; // the counters of a peer that has not used the gateway
function short(key) { return key.slice(0, 12) + "\u2026"; }
function readColors() {
	const style = getComputedStyle(document.documentElement);
	for (const name of ["in", "out", "good", "bad", "line", "faint"]) colors[name] = style.getPropertyValue("--" + name).trim();
}

// A Ring holds the newest values of a plot, oldest first.
class Ring {
	constructor(size) { this.values = new Float64Array(size); this.at = 0; }
	push(v) { this.values[this.at] = v; this.at = (this.at + 1) % this.values.length; }
	get(i) { return this.values[(this.at + i) % this.values.length]; }
	add(v) { this.values[(this.at + this.values.length - 1) % this.values.length] += v; }
	get newest() { return this.get(this.values.length - 1); }
	get max() { let m = 0; for (const v of this.values) if (v > m) m = v; return m; }
	get sum() { let s = 0; for (const v of this.values) s += v; return s; }
}

// prepare sizes a canvas for the screen and returns a context in CSS pixels.
function prepare(canvas) {
	const ratio = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
	if (!w || !h) return null;
	if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
		canvas.width = Math.round(w * ratio);
		canvas.height = Math.round(h * ratio);
	}
	const c = canvas.getContext("2d");
	c.setTransform(ratio, 0, 0, ratio, 0, 0);
	c.clearRect(0, 0, w, h);
	return {c, w, h};
}
function trace(p, ring, from, top, color, fill) {
	const {c, w, h} = p, n = ring.values.length - from, x = (i) => i * w / (n - 1), y = (v) => h - 1.5 - v / top * (h - 4);
	c.beginPath();
	for (let i = 0; i < n; i++) c.lineTo(x(i), y(ring.get(from + i)));
	c.strokeStyle = color;
	c.lineWidth = 1.5;
	c.lineJoin = "round";
	c.stroke();
	if (!fill) return;
	c.lineTo(w, h);
	c.lineTo(0, h);
	c.globalAlpha = .13;
	c.fillStyle = color;
	c.fill();
	c.globalAlpha = 1;
}
function base(p) {
	p.c.fillStyle = colors.line;
	p.c.fillRect(0, p.h - 1, p.w, 1);
}
function drawThroughput(canvas, d) {
	const p = prepare(canvas);
	if (!p) return;
	const top = Math.max(d.in.max, d.out.max, 1);
	base(p);
	if (d.in.max > 0) trace(p, d.in, 0, top, colors.in, true);
	if (d.out.max > 0) trace(p, d.out, 0, top, colors.out, false);
	if (top > 1) {
		p.c.fillStyle = colors.faint;
		p.c.font = "11px system-ui, sans-serif";
		p.c.fillText("peak " + size(top) + "/s", 2, 10);
	}
}
function drawHandshakes(canvas, d) {
	const p = prepare(canvas);
	if (!p) return;
	base(p);
	const bars = 60, each = points / bars, sums = [];
	let top = 1;
	for (let b = 0; b < bars; b++) {
		let good = 0, bad = 0;
		for (let i = 0; i < each; i++) { good += d.completed.get(b * each + i); bad += d.failed.get(b * each + i); }
		sums.push([good, bad]);
		top = Math.max(top, good + bad);
	}
	top = Math.max(top, 4);
	const w = p.w / bars, unit = (p.h - 4) / top;
	sums.forEach(([good, bad], b) => {
		p.c.fillStyle = colors.good;
		p.c.fillRect(b * w + .5, p.h - 1 - good * unit, Math.max(w - 1.5, 1), good * unit);
		p.c.fillStyle = colors.bad;
		p.c.fillRect(b * w + .5, p.h - 1 - (good + bad) * unit, Math.max(w - 1.5, 1), bad * unit);
	});
}
function drawSpark(canvas, peer) {
	const p = prepare(canvas);
	if (!p) return;
	base(p);
	const top = Math.max(peer.in.max, peer.out.max);
	if (peer.in.max > 0) trace(p, peer.in, 0, top, colors.in, true);
	if (peer.out.max > 0) trace(p, peer.out, 0, top, colors.out, false);
	p.c.fillStyle = colors.good;
	for (let i = 0; i < peer.marks.values.length; i++) {
		if (!peer.marks.get(i)) continue;
		p.c.beginPath();
		p.c.arc(Math.min(Math.max(i * p.w / (peer.marks.values.length - 1), 2.5), p.w - 2.5), p.h - 3, 2.5, 0, 7);
		p.c.fill();
	}
}

// A Device is one section of the page.
class Device {
	constructor(index) {
		this.index = index;
		this.peers = new Map();
		this.in = new Ring(points);
		this.out = new Ring(points);
		this.completed = new Ring(points);
		this.failed = new Ring(points);
		this.limit = step;
		this.sort = "state";
		this.down = true; // whether the order is descending
		this.words = "";
		this.node = $("#device").content.cloneNode(true).firstElementChild;
		this.body = $("tbody", this.node);
		this.listen();
		$("#devices").append(this.node);
	}
	listen() {
		$("input", this.node).addEventListener("input", (e) => { this.words = e.target.value.toLowerCase().trim(); this.limit = step; this.draw(true); });
		$("select", this.node).addEventListener("change", (e) => this.sortBy(e.target.value, true));
		for (const b of this.node.querySelectorAll("[data-sort]")) b.addEventListener("click", () => this.sortBy(b.dataset.sort));
		$(".more", this.node).addEventListener("click", () => { this.limit += step; this.draw(true); });
	}
	sortBy(what, keep) {
		this.down = keep || this.sort !== what ? what !== "name" : !this.down;
		this.sort = what;
		$("select", this.node).value = what;
		this.draw(true);
	}
	merge(view, all, seconds) {
		const rows = new Map((view.peers || []).map((r) => [r.key, r]));
		this.head = view;
		for (const key of view.gone || []) this.remove(key);
		if (all) for (const key of [...this.peers.keys()]) if (!rows.has(key)) this.remove(key);
		let sumIn = 0, sumOut = 0;
		for (const [key, row] of rows) if (!this.peers.has(key)) this.peers.set(key, {row, in: new Ring(60), out: new Ring(60), marks: new Ring(60)});
		for (const [key, peer] of this.peers) {
			const row = rows.get(key) || peer.row, old = peer.row;
			// A counter that went back belongs to a peer that was removed and added again.
			const rateIn = seconds > 0 ? Math.max(row.received - old.received, 0) / seconds : 0;
			const rateOut = seconds > 0 ? Math.max(row.sent - old.sent, 0) / seconds : 0;
			peer.row = row;
			if (seconds > 0 || all) {
				peer.in.push(rateIn);
				peer.out.push(rateOut);
				peer.marks.push(seconds > 0 && row.handshake && row.handshake !== old.handshake ? 1 : 0);
			}
			sumIn += rateIn;
			sumOut += rateOut;
		}
		this.in.push(sumIn);
		this.out.push(sumOut);
		this.completed.push(0);
		this.failed.push(0);
	}
	remove(key) {
		const peer = this.peers.get(key);
		if (peer && peer.node) peer.node.remove();
		if (peer && peer.detail) peer.detail.remove();
		this.peers.delete(key);
	}
	order(a, b) {
		const name = (p) => p.row.name || "\uffff" + p.row.key;
		let d = 0;
		switch (this.sort) {
		case "state": d = severity[b.row.state] - severity[a.row.state]; break;
		case "rate": d = a.in.newest + a.out.newest - b.in.newest - b.out.newest; break;
		case "total": d = a.row.received + a.row.sent - b.row.received - b.row.sent; break;
		case "flows": d = (a.row.gateway || nothing).flows - (b.row.gateway || nothing).flows; break;
		case "handshake": d = (a.row.handshake || 0) - (b.row.handshake || 0); break;
		case "name": d = name(a) < name(b) ? -1 : 1; break;
		}
		if (d !== 0) return this.down ? -d : d;
		return name(a) < name(b) ? -1 : 1;
	}
	matches(r) {
		return !this.words || [r.name, r.key, r.endpoint, r.allowed, r.state].some((t) => t && t.toLowerCase().includes(this.words));
	}
	// choose picks the rows to show. Rates change all the time, so choose sorts again only every 5 s, unless the viewer has
	// asked for another order.
	choose(now) {
		const stale = Date.now() - (this.chosenAt || 0) >= 5000;
		if (!now && !stale && this.chosen && this.count === this.peers.size) return;
		if (!now && this.body.contains(document.activeElement) && this.count === this.peers.size) return; // keep the rows in place while one has the keyboard focus
		this.chosenAt = Date.now();
		this.count = this.peers.size;
		this.found = [...this.peers.values()].filter((p) => this.matches(p.row)).sort((a, b) => this.order(a, b));
		const chosen = this.found.slice(0, this.limit);
		const nodes = [];
		for (const peer of chosen) {
			if (!peer.node) this.make(peer);
			nodes.push(peer.node);
			if (peer.detail) nodes.push(peer.detail);
		}
		this.chosen = chosen;
		const old = this.body.children;
		if (old.length !== nodes.length || nodes.some((n, i) => n !== old[i])) {
			const focus = document.activeElement;
			this.body.replaceChildren(...nodes);
			if (focus && focus !== document.activeElement && this.body.contains(focus)) focus.focus();
		}
	}
	make(peer) {
		peer.node = $("#peer").content.cloneNode(true).firstElementChild;
		const b = $(".open", peer.node);
		b.addEventListener("click", () => this.toggle(peer, b));
		peer.parts = {};
		for (const name of ["who", "where", "state", "why", "exit", "spark", "r-in", "r-out", "t-in", "t-out"]) peer.parts[name] = $("." + name, peer.node);
		peer.parts.time = $("time", peer.node);
	}
	toggle(peer, button) {
		const open = !peer.detail;
		button.setAttribute("aria-expanded", String(open));
		peer.node.classList.toggle("opened", open);
		if (!open) {
			peer.detail.remove();
			peer.detail = null;
			return;
		}
		peer.detail = document.createElement("tr");
		peer.detail.className = "detail";
		const cell = peer.detail.insertCell();
		cell.colSpan = 5;
		cell.append(document.createElement("dl"));
		peer.node.after(peer.detail);
		this.drawDetail(peer);
	}
	drawDetail(peer) {
		const r = peer.row;
		const lines = [
			["Public key", r.key], ["Endpoint", r.endpoint || "not known"], ["Allowed IPs", r.allowed ? r.allowed + (r.more ? " and " + number(r.more) + " more" : "") : "none"],
			["Last heard", ago(r.heard)], ["Last handshake", ago(r.handshake)], ["Received", size(r.received)], ["Sent", size(r.sent)], ["Dropped", number(r.drops || 0)],
		];
		if (this.head.gateway) {
			const g = r.gateway || nothing;
			lines.push(["Gateway: flows", number(g.flows) + " now, " + number(g.opened) + " opened, " + number(g.refused) + " refused, " + number(g.failed) + " failed"],
				["Gateway: traffic", size(g.from_peer) + " to other hosts, " + size(g.to_peer) + " from them"],
				["Gateway: other", count(g.pings, "ping", "pings") + " answered, " + count(g.dropped, "datagram", "datagrams") + " dropped"]);
		}
		const list = $("dl", peer.detail);
		if (list.children.length !== 2 * lines.length) list.replaceChildren();
		if (!list.children.length) for (let i = 0; i < lines.length; i++) list.append(document.createElement("dt"), document.createElement("dd"));
		lines.forEach(([name, text], i) => { set(list.children[2 * i], name); set(list.children[2 * i + 1], text); });
	}
	drawRow(peer) {
		const r = peer.row, n = peer.parts;
		set(n.who, r.name || short(r.key));
		n.who.classList.toggle("key", !r.name);
		n.who.title = r.key;
		set(n.where, [r.endpoint, r.allowed ? r.allowed + (r.more ? " +" + r.more : "") : ""].filter(Boolean).join(" \u00b7 ") || "no endpoint yet");
		set(n.state, r.state);
		n.state.className = "state " + r.state;
		set(n.why, r.text === "Connected." ? "" : r.text.replace(/^Connected\. /, "").replace(/^(Idle|Connecting): t/, "T"));
		this.drawExit(peer);
		for (const [part, v] of [["r-in", peer.in.newest], ["r-out", peer.out.newest]]) {
			set(n[part], size(v) + "/s");
			n[part].classList.toggle("zero", v === 0);
		}
		for (const [part, v] of [["t-in", r.received], ["t-out", r.sent]]) {
			set(n[part], size(v));
			n[part].classList.toggle("zero", v === 0);
		}
		this.drawTimes(peer);
		drawSpark(n.spark, peer);
	}
	// drawExit shows in the row of a peer what the peer does at the gateway, if it ever did anything there.
	drawExit(peer) {
		const g = peer.row.gateway, node = peer.parts.exit;
		node.hidden = !g;
		if (g) set(node, [count(g.flows, "flow", "flows"), size(g.from_peer) + " to and " + size(g.to_peer) + " from other hosts", g.refused && number(g.refused) + " refused"].filter(Boolean).join("\u00a0\u00b7 "));
	}
	drawTimes(peer) {
		const r = peer.row;
		set(peer.parts.time, ago(r.handshake));
		peer.parts.time.classList.toggle("zero", !r.handshake);
		if (r.handshake) peer.parts.time.dateTime = new Date(r.handshake).toISOString();
		if (peer.detail) this.drawDetail(peer);
	}
	draw(now) {
		const h = this.head, n = this.node;
		if (!h) return;
		set($(".name", n), h.name || "Device");
		const badge = $(".badge", n);
		set(badge, h.up ? h.under_load ? "up, under load" : "up" : "down");
		badge.className = "badge " + (h.up ? "up" : "down");
		set($(".meta", n), [h.key ? "public key " + h.key : "no private key", h.port ? "port " + h.port : ""].filter(Boolean).join(" \u00b7 "));
		this.drawFigures();
		drawThroughput($(".throughput", n), this);
		drawHandshakes($(".handshakes", n), this);
		this.choose(now);
		for (const peer of this.chosen) this.drawRow(peer);
		for (const th of n.querySelectorAll("thead th")) {
			if ($("button", th).dataset.sort === this.sort) th.setAttribute("aria-sort", this.down ? "descending" : "ascending");
			else th.removeAttribute("aria-sort");
		}
		const total = this.peers.size, found = this.found.length, left = found - this.chosen.length;
		set($(".shown", n), this.words ? number(found) + " of " + number(total) + (total === 1 ? " peer" : " peers") : number(total) + (total === 1 ? " peer" : " peers"));
		n.querySelector("table").hidden = found === 0;
		$(".tools", n).hidden = total === 0;
		const none = $(".none", n), more = $(".more", n);
		none.hidden = found > 0;
		set(none, total === 0 ? "This device has no peers yet." : "No peer matches \u201c" + this.words + "\u201d.");
		more.hidden = left <= 0;
		set(more, "Show " + Math.min(step, left) + " more of " + number(left));
	}
	drawFigures() {
		const h = this.head, n = this.node;
		let connected = 0, received = 0, sent = 0, drops = 0;
		const exit = {...nothing};
		for (const {row} of this.peers.values()) {
			for (const [name, v] of Object.entries(row.gateway || nothing)) exit[name] += v;
			if (row.state === "connected" || row.state === "impaired") connected++;
			received += row.received;
			sent += row.sent;
		}
		for (const v of Object.values(h.drops || {})) drops += v;
		const dd = $(".connected", n), of = " of " + number(this.peers.size);
		if (dd.textContent !== number(connected) + of) {
			const small = document.createElement("small");
			small.textContent = of;
			dd.replaceChildren(number(connected), small);
		}
		$(".gateway", n).hidden = $("option[value=flows]", n).hidden = !h.gateway;
		set($(".flows", n), number(exit.flows));
		set($(".from-peers", n), size(exit.from_peer));
		set($(".to-peers", n), size(exit.to_peer));
		set($(".refused", n), number(exit.refused));
		set($(".in", n), size(received));
		set($(".out", n), size(sent));
		set($(".drops", n), number(drops));
		$(".drops", n).title = Object.entries(h.drops || {}).map(([reason, v]) => reason + ": " + number(v)).join("\n");
		set($(".rate-in", n), size(this.in.newest) + "/s");
		set($(".rate-out", n), size(this.out.newest) + "/s");
		set($(".completed", n), number(this.completed.sum));
		set($(".failed", n), number(this.failed.sum));
	}
}

function report(r, all) {
	const seconds = last ? (r.time - last) / 1000 : 0;
	last = r.time;
	offset = r.time - Date.now();
	$("#loading")?.remove();
	while (devices.length < r.devices.length) devices.push(new Device(devices.length));
	r.devices.forEach((view, i) => devices[i].merge(view, all, seconds));
	if (!document.hidden) devices.forEach((d) => d.draw(all));
	if (!r.devices.length && !$("#devices").children.length) {
		const p = document.createElement("p");
		p.className = "empty card";
		p.textContent = "There is no device to show.";
		$("#devices").append(p);
	}
}

function line(time, kind, bad, about, title = "") {
	const li = document.createElement("li");
	li.title = title; // the whole error
	for (const [tag, name, text] of [["time", "", new Date(time).toTimeString().slice(0, 8)], ["span", bad ? "bad" : "", kind], ["span", "about", about]]) {
		const node = document.createElement(tag);
		node.className = name;
		node.textContent = text;
		li.append(node);
	}
	const list = $("#events");
	list.prepend(li);
	while (list.children.length > 200) list.lastChild.remove();
	list.hidden = false;
	$("#no-events").hidden = true;
}
function event(e) {
	const d = devices[e.device];
	if (d && e.kind === "handshake completed") d.completed.add(1 + (e.merged || 0));
	if (d && e.kind === "attempt failed") d.failed.add(1 + (e.merged || 0));
	const who = e.name || (e.key ? short(e.key) : "");
	const about = [devices.length > 1 && d && d.head.name, who, e.endpoint, e.attempt && "attempt " + e.attempt, e.error && e.error.replace(/^wireguard: /, "").split(";")[0], e.merged && "and " + number(e.merged) + " before"];
	line(e.time, e.kind, e.bad, about.filter(Boolean).join(" \u00b7 "), e.error);
}

function live(state, text) {
	const node = $("#live");
	node.className = "live " + state;
	set(node, text);
}
function connect() {
	const stream = new EventSource("events");
	stream.addEventListener("all", (e) => {
		$("#events").replaceChildren();
		live("on", "Live");
		report(JSON.parse(e.data), true);
	});
	stream.addEventListener("changes", (e) => report(JSON.parse(e.data), false));
	stream.addEventListener("event", (e) => event(JSON.parse(e.data)));
	stream.addEventListener("skipped", (e) => line(Date.now() + offset, "more events", false, number(JSON.parse(e.data)) + " happened in this second and are not shown"));
	stream.addEventListener("error", () => {
		live("lost", "Connection lost, trying again");
		if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 5000); // after a refusal, an EventSource does not connect again itself
	});
}

document.addEventListener("keydown", (e) => {
	const typing = e.target instanceof HTMLInputElement || e.target instanceof HTMLSelectElement;
	if (e.key === "/" && !typing && !e.ctrlKey && !e.metaKey && !e.altKey) {
		const input = $(".filter input");
		if (input) { e.preventDefault(); input.focus(); }
	} else if (e.key === "Escape" && e.target instanceof HTMLInputElement) {
		e.target.value = "";
		e.target.dispatchEvent(new Event("input"));
	}
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); devices.forEach((d) => d.draw()); });
window.addEventListener("resize", () => devices.forEach((d) => d.draw()));
document.addEventListener("visibilitychange", () => { if (!document.hidden) devices.forEach((d) => d.draw(true)); });
setInterval(() => { if (!document.hidden) for (const d of devices) if (d.chosen) d.chosen.forEach((p) => d.drawTimes(p)); }, 1000);
readColors();
connect();
