package browser

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

var update = flag.Bool("update", false, "make the pictures of metricsapi/README.md anew")

// limit bounds how long anything is waited for; seen are some tens of milliseconds, and two seconds
// for what the console looks for.
const limit = time.Minute

// console runs meshpulse console against an API server until the test ends, and returns the page's
// address.
func console(t testing.TB, server string, args ...string) (address string, process *exec.Cmd) {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "..", "bin", "meshpulse"),
		append([]string{"console", "--kubeconfig", kubeconfig, "--server", server, "-A"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: make build", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), cmd
}

// tab is a page of a browser, and what is against the rules that it did.
type tab struct {
	testing.TB
	ctx  context.Context
	base string

	mu    sync.Mutex
	wrong []string
}

// browser starts Chromium and opens nothing yet. What it asks others for, and what it complains
// about, fails the test.
func browser(t testing.TB, base string) *tab {
	t.Helper()
	binary := os.Getenv("CHROMIUM_BIN")
	if binary == "" {
		binary = filepath.Join("..", "..", "..", ".cache", "chromium", "chromium")
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: bench/tools/browser/get-chromium fetches one, or set CHROMIUM_BIN", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(binary), chromedp.WSURLReadTimeout(limit), chromedp.UserDataDir(t.TempDir()))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() { cancel(); end() })
	b := &tab{TB: t, ctx: ctx, base: base}
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatal(err)
	}
	command(b, network.Enable, network.EnableParams{})
	command(b, log.Enable, cdp.Empty{})
	b.size(1000, 420)
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, w := range b.wrong {
			t.Error(w)
		}
	})
	return b
}

func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, b.base) {
			b.wrong = append(b.wrong, "it asks for "+e.Request.URL)
		}
	case *log.EventEntryAdded:
		if e.Entry.Source != log.EntrySourceNetwork { // a stream that ends with the console is one
			b.wrong = append(b.wrong, "it complains: "+e.Entry.Text)
		}
	}
}

// command has the browser do something.
func command[P, R any](b *tab, c cdp.Command[P, R], params P) R {
	b.Helper()
	got, err := chromedp.Call(b.ctx, c, params)
	if err != nil {
		b.Fatal(err)
	}
	return got
}

// size makes the window so large, or it a phone.
func (b *tab) size(width, height int64) {
	b.Helper()
	command(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600})
}

// open opens a page.
func (b *tab) open(path string) {
	b.Helper()
	if err := chromedp.Do(b.ctx, chromedp.Navigate(b.base+path)); err != nil {
		b.Fatal(err)
	}
}

// await waits until a JavaScript expression is true.
func (b *tab) await(what, expression string) {
	b.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		yes, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("!!("+expression+")")) // an error is a page that comes or goes
		if yes {
			return
		}
		if time.Now().After(end) {
			body, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.body.innerText`))
			b.Fatalf("%s: %s is never true: %v\n%s", what, expression, err, body)
		}
	}
}

// is evaluates a JavaScript expression.
func is[T any](b *tab, expression string) T {
	b.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.Fatalf("%s: %v", expression, err)
	}
	return v
}

// press presses a key.
func (b *tab) press(key string) {
	b.Helper()
	if err := chromedp.Do(b.ctx, chromedp.KeyEvent(key)); err != nil {
		b.Fatal(err)
	}
}

const (
	pasts    = `[...document.querySelectorAll('svg.small .answered')].filter(p => p.getTotalLength() > 115).length === 2` // of three pods one is silent
	rows     = `[...document.querySelectorAll('#pieces td.name a')].map(a => a.textContent).join(' ')`
	focused  = `document.activeElement.textContent`
	dark     = `getComputedStyle(document.body).backgroundColor`
	overflow = `document.scrollingElement.scrollWidth - document.documentElement.clientWidth`
)

// picture makes a picture of what is seen, for metricsapi/README.md.
func (b *tab) picture(name string) {
	b.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.Fatal(err)
	}
	const most = 150 << 10
	if len(png) > most {
		b.Errorf("%s has %d bytes, more than %d", name, len(png), most)
	}
	file := filepath.Join("..", "..", "..", "metricsapi", "pages", "pictures", name+".png")
	if *update {
		if err := os.WriteFile(file, png, 0o644); err != nil { //nolint:gosec // it is seen by everybody
			b.Error(err)
		}
	} else if _, err := os.Stat(file); err != nil {
		b.Errorf("%v: go test . -update makes it", err)
	}
}

func TestAllHPAsAreLive(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	address, _ := console(t, api.URL)
	b := browser(t, address)
	b.open("")
	if got := is[string](b, rows); got != "checkout search cart catalog ledger" {
		t.Errorf("rows: %s", got)
	}
	b.picture("all")
	api.change("catalog", func(e object) { e.metric()["value"] = "33" })
	b.await("a value that changes", `document.getElementById('shop/catalog/0').innerText.includes('33')`)
	api.change("ledger", func(e object) { e.held() })
	b.await("what gets worse goes up", rows+` === 'checkout ledger search cart catalog'`)
	api.fail(true)
	b.await("an error is said", `document.querySelector('#status.error')?.innerText.includes('nothing newer is known')`)
	if got := is[string](b, rows); got != "checkout ledger search cart catalog" {
		t.Errorf("rows while nothing newer is known: %s", got)
	}
	api.fail(false)
	b.await("and what comes after it", `document.querySelector('#status').innerText.includes('5 HPAs of all namespaces')`)
}

func TestTheKeyboardIsEnough(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	address, _ := console(t, api.URL)
	b := browser(t, address)
	b.open("")
	for _, step := range []struct{ key, want string }{
		{"j", "checkout"}, {"j", "search"}, {kb.ArrowDown, "cart"}, {"k", "search"}, {kb.ArrowUp, "checkout"}, {"k", "checkout"}, {"j", "search"},
	} {
		b.press(step.key)
		if got := is[string](b, focused); got != step.want {
			t.Errorf("after %q %s is chosen, want %s", step.key, got, step.want)
		}
	}
	// What is chosen stays so while its row is drawn anew, and moved.
	api.change("search", func(e object) { e.metric()["value"] = "44" })
	b.await("the row is another", `document.getElementById('shop/search/0').innerText.includes('44')`)
	api.change("checkout", func(e object) { e["troubles"] = nil })
	b.await("the order is another", rows+` === 'search cart catalog checkout ledger'`)
	if got := is[string](b, focused); got != "search" {
		t.Errorf("after a change %s is chosen", got)
	}
	b.press(kb.Enter)
	b.await("Enter opens it", `location.pathname.endsWith('/hpas/shop/search/') && typeof follow === 'function' && document.querySelector('#text')`)
	b.press(kb.Escape)
	b.await("Escape comes back", `!location.pathname.includes('/hpas/') && document.querySelector('#pieces td.name')`)
}

func TestOneHPAIsDrawn(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	address, _ := console(t, api.URL)
	b := browser(t, address)
	b.size(1000, 900)
	b.open("hpas/shop/checkout/")
	b.await("the pods' pasts", pasts)
	if n := is[int](b, `document.querySelectorAll('svg.plot').length`); n != 2 {
		t.Errorf("%d plots", n)
	}
	for _, class := range []string{"answered", "seen", "target", "baseline", "wanted", "asked", "there"} {
		if length := is[float64](b, fmt.Sprintf(`document.querySelector('svg.plot .line.%s').getTotalLength()`, class)); length < 1 {
			t.Errorf("the line %s is %g long", class, length)
		}
	}
	for class, title := range map[string]string{"held": "held since", "surge": "surge from", "raised": "raised from"} {
		if got := is[string](b, fmt.Sprintf(`document.querySelector('svg.plot .band.%s title').textContent`, class)); !strings.Contains(got, title) {
			t.Errorf("%s: %q", class, got)
		}
		if width := is[float64](b, fmt.Sprintf(`document.querySelector('svg.plot .band.%s').getBoundingClientRect().width`, class)); width < 1 {
			t.Errorf("%s is %g wide", class, width)
		}
	}
	if n := is[int](b, `document.querySelectorAll('svg.plot .mark').length`); n != 1 {
		t.Errorf("%d raises are marked, want 1", n)
	}
	b.picture("one")
	api.change("checkout", func(e object) { e["troubles"] = nil })
	b.await("live", `document.querySelector('#troubles').innerText === 'Nothing is wrong.'`)
}

func TestDarkAndNarrow(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	address, _ := console(t, api.URL)
	b := browser(t, address)
	b.open("")
	light := is[string](b, dark)
	command(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
	if got := is[string](b, dark); got == light || light != "rgb(255, 255, 255)" {
		t.Errorf("the paper is %s, and %s where it is dark", light, got)
	}
	b.size(1000, 900)
	b.open("hpas/shop/checkout/")
	b.await("the pods' pasts", pasts)
	b.picture("dark")
	b.size(390, 844)
	for path, name := range map[string]string{"": "phone-all", "hpas/shop/checkout/": "phone-one"} {
		b.open(path)
		if wide := is[int](b, overflow); wide > 0 {
			t.Errorf("%q is %d wider than a phone", path, wide)
		}
		b.picture(name)
	}
}

func TestWithoutJavaScript(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	address, _ := console(t, api.URL)
	b := browser(t, address)
	command(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.open("")
	if got := is[string](b, rows); got != "checkout search cart catalog ledger" {
		t.Errorf("rows: %s", got)
	}
	api.change("catalog", func(e object) { e.metric()["value"] = "33" })
	b.await("it is loaded anew", `document.getElementById('shop/catalog/0')?.innerText.includes('33')`)
}

func TestAPageSaysThatTheConsoleHasEnded(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	address, process := console(t, api.URL)
	b := browser(t, address)
	b.open("")
	b.await("it is live", `document.getElementById('lost').hidden && document.querySelector('#pieces td.name')`)
	if err := process.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	b.await("it is not any more", `!document.getElementById('lost').hidden`)
}

func TestAPageThatIsNotSeenIsNotKeptUp(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	address, _ := console(t, api.URL)
	b := browser(t, address)
	b.open("")
	b.await("it is live", `events?.readyState === EventSource.OPEN`)
	for _, hidden := range []bool{true, false} {
		is[bool](b, fmt.Sprintf(`Object.defineProperty(document, 'hidden', {value: %t, configurable: true}); document.dispatchEvent(new Event('visibilitychange'))`, hidden))
		b.await(fmt.Sprintf("hidden: %t", hidden), fmt.Sprintf(`(events.readyState === EventSource.CLOSED) === %t`, hidden))
	}
}
