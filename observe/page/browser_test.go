package page_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/observe/page"
)

// A browser is a headless Chromium with one tab. The test controls it through the DevTools protocol.
type browser struct {
	t       *testing.T
	conn    *websocket.Conn
	session string
	id      int
	console []string // the errors that the page logged
}

// startBrowser starts Chromium, or skips the test.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	if testkit.Race {
		t.Skip("with the race detector, the page is too slow for a browser on a busy machine")
	}
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs chromium: install it to open the page in a browser")
	}
	// This is not the test's temporary folder, because that folder is removed while Chromium's last processes may still write to
	// it.
	home, err := os.MkdirTemp("", "chromium")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--remote-debugging-port=0", "--remote-allow-origins=*", "--user-data-dir="+home, "about:blank")
	c.Env = append(os.Environ(), "HOME="+home)
	log, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		for range 50 {
			if os.RemoveAll(home) == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	at := ""
	lines := bufio.NewScanner(log)
	for at == "" && lines.Scan() {
		_, at, _ = strings.Cut(lines.Text(), "DevTools listening on ")
	}
	if at == "" {
		t.Fatal("chromium did not print the address of its DevTools socket")
	}
	go func() {
		for lines.Scan() {
		}
	}()
	b := &browser{t: t}
	if b.conn, err = websocket.Dial(at, "", "http://127.0.0.1/"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.conn.Close() })
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// call calls a method of the DevTools protocol, and keeps the errors that the page logs meanwhile.
func (b *browser) call(method string, params any, result any) {
	b.t.Helper()
	b.id++
	if err := websocket.JSON.Send(b.conn, map[string]any{"id": b.id, "method": method, "params": params, "sessionId": b.session}); err != nil {
		b.t.Fatal(err)
	}
	if err := b.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		b.t.Fatal(err)
	}
	for {
		var m struct {
			ID     int
			Method string
			Params json.RawMessage
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := websocket.JSON.Receive(b.conn, &m); err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		if m.Method == "Runtime.exceptionThrown" || m.Method == "Log.entryAdded" {
			b.console = append(b.console, string(m.Params))
		}
		if m.ID != b.id {
			continue
		}
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatal(err)
			}
		}
		return
	}
}

func (b *browser) open(url string) { b.call("Page.navigate", map[string]any{"url": url}, nil) }

// screen sets the size of the window in CSS pixels, and whether the page is dark or light.
func (b *browser) screen(width, height int, dark bool) {
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}, nil)
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// eval returns the value of a JavaScript expression as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r)
	if r.ExceptionDetails != nil {
		return string(r.ExceptionDetails) // the expression may fail while a page loads
	}
	return fmt.Sprint(r.Result.Value)
}

// want waits until a JavaScript expression is true.
func (b *browser) want(why, expression string) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); b.eval(expression) != "true"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s: this is not true within 30 s: %s; the page says\n%s\n%v", why, expression, b.eval(text), b.console)
		}
	}
}

// press presses a key.
func (b *browser) press(key string, code int) {
	for _, kind := range []string{"keyDown", "keyUp"} {
		params := map[string]any{"type": kind, "key": key, "windowsVirtualKeyCode": code}
		if kind == "keyDown" && len(key) == 1 {
			params["text"] = key
		} else if kind == "keyDown" && key == "Enter" {
			params["text"] = "\r"
		}
		b.call("Input.dispatchKeyEvent", params, nil)
	}
}

// shot writes a screenshot into the folder that the environment variable PAGE_SCREENSHOTS names.
func (b *browser) shot(name string) {
	dir := os.Getenv("PAGE_SCREENSHOTS")
	if dir == "" {
		return
	}
	var picture struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &picture)
	data, err := base64.StdEncoding.DecodeString(picture.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), data, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// wait waits only if screenshots are taken, because the plots need some time.
func (b *browser) wait(d time.Duration) {
	if os.Getenv("PAGE_SCREENSHOTS") != "" {
		time.Sleep(d)
	}
}

// noOverflow fails the test if the page is wider than the window.
func (b *browser) noOverflow(what string) {
	b.t.Helper()
	if got := b.eval("document.documentElement.scrollWidth - window.innerWidth"); strings.TrimPrefix(got, "-") != "0" && !strings.HasPrefix(got, "-") {
		b.t.Errorf("%s: the page is %s pixels wider than the window", what, got)
	}
}

const text = "document.body.innerText"

// TestBrowser checks that the page shows peers, reasons and events, that its plots change, and that all controls work with the
// keyboard. The page must load nothing from another server.
func TestBrowser(t *testing.T) {
	b := startBrowser(t)
	h := newHub(t)
	populate(h)
	server := serve(t, h.handler())
	traffic(h)

	b.screen(1280, 1000, false)
	b.open(server.URL)
	b.want("all peers are shown", `document.querySelectorAll("tbody tr").length === 8`)
	b.want("a name with HTML in it is shown as text", text+`.includes("camera <b>&amp;")`)
	b.want("a peer is connected", text+`.includes("connected")`)
	b.want("bytes are counted with their unit", `/\d\sKiB\/s/.test(`+text+`)`)
	b.want("times are relative", `/\d+\ss ago|now/.test(`+text+`)`)
	b.want("reasons are sentences", text+`.includes("Answers arrive that do not open.")`)
	b.want("sources that are not allowed are explained", text+`.includes("had a source that its allowed IPs do not contain.")`)
	b.want("events arrive", `document.querySelectorAll("#events li").length > 0`)
	b.want("a peer in trouble is first", `document.querySelector("tbody .state").textContent === "unreachable"`)
	b.want("throughput is drawn", `(() => { const c = document.querySelector(".throughput"); return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some((v) => v > 0); })()`)
	b.noOverflow("desktop")
	b.wait(20 * time.Second)
	b.shot("light")
	b.eval(`scrollTo(0, 1e6)`)
	b.shot("light-end")
	b.eval(`scrollTo(0, 0)`)

	b.press("/", 191)
	b.want("/ reaches the filter", `document.activeElement.type === "search"`)
	for _, c := range "lap" {
		b.press(string(c), int(c)-32)
	}
	b.want("the filter leaves one peer", `document.querySelectorAll("tbody tr").length === 1 && document.querySelector(".shown").textContent === "1 of 8 peers"`)
	b.press("Escape", 27)
	b.want("Escape empties the filter", `document.querySelectorAll("tbody tr").length === 8`)
	for range 2 {
		b.press("Tab", 9)
	}
	b.want("Tab reaches the head of a column", `document.activeElement.dataset.sort === "state"`)
	b.eval(`document.querySelector("tbody .open").focus()`)
	b.press("Enter", 13)
	b.want("Enter opens a peer", `document.querySelector(".detail") !== null && document.querySelector(".detail").innerText.includes(document.querySelector("tbody .who").title)`)
	b.wait(time.Second)
	b.screen(1280, 1000, true)
	b.wait(1500 * time.Millisecond)
	b.want("the page is dark", `getComputedStyle(document.body).backgroundColor === "rgb(17, 21, 27)"`)
	b.shot("dark")
	b.press("Enter", 13)
	b.want("Enter closes the peer", `document.querySelector(".detail") === null`)

	for _, dark := range []bool{false, true} {
		b.screen(390, 844, dark)
		b.want("the phone has a choice of orders", `getComputedStyle(document.querySelector(".sort")).display !== "none"`)
		b.noOverflow("phone")
		b.wait(1500 * time.Millisecond)
		b.shot(fmt.Sprintf("phone-dark=%t", dark))
		b.eval(`document.querySelector(".tools").scrollIntoView()`)
		b.shot(fmt.Sprintf("phone-peers-dark=%t", dark))
		b.eval(`scrollTo(0, 0)`)
	}
	if got := b.eval(`performance.getEntriesByType("resource").filter((r) => !r.name.startsWith(location.origin)).length`); got != "0" {
		t.Errorf("the page loaded %s files from other servers, want 0", got)
	}
	b.want("a peer that is removed is gone", func() string {
		if err := h.device.RemovePeer(h.spokes[7].key); err != nil {
			t.Fatal(err)
		}
		return `document.querySelectorAll("tbody tr").length === 7`
	}())
	for _, line := range b.console {
		if !strings.Contains(line, "favicon") {
			t.Errorf("the browser logged an error: %s", line)
		}
	}
}

// TestBrowserGateway checks that the page shows each peer's counters at the gateway, and the sums.
func TestBrowserGateway(t *testing.T) {
	b := startBrowser(t)
	h := newHub(t)
	populate(h)
	server := serve(t, h.withGateway())
	traffic(h)
	h.pass(h.spokes[0], page.GatewayPeer{Flows: 18, Opened: 5210, Refused: 3, Failed: 12, Dropped: 2, Pings: 1, FromPeer: 31 << 20, ToPeer: 812 << 20})
	h.pass(h.spokes[1], page.GatewayPeer{Flows: 1, Opened: 44, FromPeer: 5 << 10, ToPeer: 9 << 20})
	b.screen(1280, 1000, false)
	b.open(server.URL)
	b.want("the page shows the sums over all peers", `document.querySelector(".flows").textContent === "19" && document.querySelector(".refused").textContent === "3" && document.querySelector(".to-peers").textContent === "821\u00a0MiB"`)
	row := func(name string) string {
		return `[...document.querySelectorAll("tbody tr")].find((r) => r.querySelector(".who")?.textContent === "` + name + `")`
	}
	b.want("a row shows the counters of its peer", row("laptop")+`.querySelector(".exit").innerText === "18\u00a0flows\u00a0\u00b7 31.0\u00a0MiB to and 812\u00a0MiB from other hosts\u00a0\u00b7 3 refused"`)
	b.want("a row shows one flow in the singular", row("office gateway")+`.querySelector(".exit").innerText.startsWith("1\u00a0flow\u00a0\u00b7 5.00\u00a0KiB to")`)
	b.want("a peer without flows has no line", row("phone")+`.querySelector(".exit").hidden`)
	h.pass(h.spokes[0], page.GatewayPeer{Flows: 17, Opened: 5210, Refused: 4, Failed: 12, Dropped: 2, Pings: 1, FromPeer: 31 << 20, ToPeer: 812 << 20})
	b.want("the row changes when the counters change", row("laptop")+`.querySelector(".exit").innerText.endsWith("\u00b7 4 refused")`)
	b.eval(row("laptop") + `.querySelector(".open").click(); ` + row("phone") + `.querySelector(".open").click()`)
	b.want("the details show all counters", text+`.includes("17 now, 5,210 opened, 4 refused, 12 failed") && `+text+`.includes("1\u00a0ping answered, 2\u00a0datagrams dropped") && `+text+`.includes("0 now, 0 opened")`)
	for _, dark := range []bool{false, true} {
		b.screen(1280, 1300, dark)
		b.noOverflow("desktop")
		b.wait(5 * time.Second)
		b.shot(fmt.Sprintf("gateway-dark=%t", dark))
	}
	for _, dark := range []bool{false, true} {
		b.screen(390, 1800, dark)
		b.want("the phone can sort by flows", `!document.querySelector("option[value=flows]").hidden`)
		b.noOverflow("phone")
		b.wait(1500 * time.Millisecond)
		b.shot(fmt.Sprintf("gateway-phone-dark=%t", dark))
	}
	b.eval(`(() => { const s = document.querySelector("select"); s.value = "flows"; s.dispatchEvent(new Event("change")); })()`)
	b.want("the peer with the most flows is first", `document.querySelector("tbody .who").textContent === "laptop"`)
	if len(b.console) > 0 {
		t.Errorf("the browser logged errors: %s", b.console)
	}
	plain := serve(t, h.handler())
	b.open(plain.URL)
	b.want("without a gateway, the page shows none of its counters", `document.querySelectorAll("tbody tr").length === 8 && document.querySelector(".gateway").hidden && document.querySelector("option[value=flows]").hidden`)
}

// TestBrowserSizes checks that the page works without peers, without devices, and with 1,000 peers.
func TestBrowserSizes(t *testing.T) {
	b := startBrowser(t)
	b.screen(1280, 800, false)

	h := newHub(t)
	server := serve(t, h.handler())
	b.open(server.URL)
	b.want("the page says that there are no peers and no events", text+`.includes("This device has no peers yet.") && `+text+`.includes("Nothing has happened since this page was opened.")`)
	b.wait(time.Second)
	b.shot("empty")

	none := serve(t, page.New(page.Config{}))
	b.open(none.URL)
	b.want("the page says that there are no devices", text+`.includes("There is no device to show.")`)
	b.shot("no-device")

	for i := range 1000 {
		if i < 8 {
			continue
		}
		if err := h.device.SetPeer(wireguard.PeerConfig{PublicKey: wireguard.NewPrivateKey().Public(), Endpoint: h.end.Endpoint(51821)}); err != nil {
			t.Fatal(err)
		}
	}
	populate(h)
	traffic(h)
	b.open(server.URL)
	b.want("the page counts 1,000 peers and shows 50", `document.querySelector(".shown")?.textContent === "1,000 peers" && document.querySelectorAll("tbody tr").length === 50`)
	b.wait(20 * time.Second)
	b.shot("thousand")
	b.eval(`document.querySelector(".more").click()`)
	b.want("the button shows 50 more peers", `document.querySelectorAll("tbody tr").length === 100`)
	b.eval(`document.querySelector(".more").scrollIntoView()`)
	b.shot("thousand-more")
}
