// The pages of meshpulse console in a real browser. A module of its own: what drives the browser is
// no dependency of the product.
module github.com/meshpulse/meshpulse/bench/tools/browser

go 1.26.0

require (
	github.com/chromedp/cdproto v0.160.1
	github.com/chromedp/chromedp v0.23.1
)

require github.com/go-json-experiment/json v0.0.0-20260213210345-44df1a37e875 // indirect
