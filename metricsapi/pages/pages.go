// Package pages shows explanations in a browser: all HPAs at a glance, the worst first, and one
// with plots and its explanation, both live.
//
// It knows explanations, HTTP and how a page is drawn. It must not know who gives the explanations,
// and has no rights of its own: what may be seen is decided by whoever the [Source] asks. The texts
// in them are other people's, so they reach a page through [explain.Printable] and the escaping of
// html/template alone.
package pages

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// Source is who is asked for explanations.
type Source interface {
	// List returns those of all HPAs that are shown.
	List(ctx context.Context) (explain.List, error)
	// One returns one HPA's, of now where ago is 0, else of so long before.
	One(ctx context.Context, namespace, name string, ago time.Duration) (explain.Explanation, error)
}

// Config is what is shown. Source and Address must be set.
type Config struct {
	Source Source
	// Address is the host:port that the pages are served on. A request that names another host is
	// refused: it is a page of somebody else's, whose name has been made to lead here.
	Address string
	// Scope says in words whose HPAs they are, such as "namespace shop".
	Scope string
	// Every is how often the source is asked while a page is open, however many are (default 2 s).
	// One that answers slowly is asked less often, so that it is busy for a twentieth of the time.
	Every time.Duration
}

//go:embed files
var files embed.FS

// Pages serves the pages. It is safe for concurrent use.
type Pages struct {
	config    Config
	token     string
	templates *template.Template
	mux       *http.ServeMux
	live      *live
}

// New returns pages at an address that nobody can guess: see [Pages.URL].
func New(c Config) (*Pages, error) {
	if c.Every <= 0 {
		c.Every = 2 * time.Second
	}
	templates, err := template.ParseFS(files, "files/*.html")
	if err != nil {
		return nil, err
	}
	p := &Pages{config: c, token: rand.Text(), templates: templates, mux: http.NewServeMux(), live: newLive(c.Every)}
	p.mux.HandleFunc("GET /{$}", p.all)
	p.mux.HandleFunc("GET /events", p.all)
	p.mux.HandleFunc("GET /hpas/{namespace}/{name}/{$}", p.one)
	p.mux.HandleFunc("GET /hpas/{namespace}/{name}/events", p.one)
	for _, name := range []string{"live.js", "page.css", "icon.svg"} {
		p.mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "files/"+name) })
	}
	return p, nil
}

// URL is where the pages are. Its path begins with a random token, without which nothing is served.
func (p *Pages) URL() string { return "http://" + p.config.Address + p.base() }

func (p *Pages) base() string { return "/" + p.token + "/" }

// all is the page of all HPAs.
func (p *Pages) all(w http.ResponseWriter, r *http.Request) {
	p.show(w, r, page{Template: "all.html", Base: p.base(), Title: "HPAs of " + p.config.Scope}, "", func() look { return p.lookAtAll() })
}

// one is the page of one HPA.
func (p *Pages) one(w http.ResponseWriter, r *http.Request) {
	namespace, name := r.PathValue("namespace"), r.PathValue("name")
	if len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
		http.Error(w, "That is no name of an HPA.", http.StatusNotFound)
		return
	}
	key := namespace + "/" + name
	p.show(w, r, page{Template: "one.html", Base: p.base(), Title: key}, key, func() look { return p.lookAtOne(namespace, name) })
}

// page is what the template of a whole page gets: the pieces that there are beside others by their
// names, the others in their order.
type page struct {
	Template, Base, Title string
	Piece                 map[string]template.HTML
	Ordered               []template.HTML
}

// show writes the whole page, or what changes of it where events are asked for.
func (p *Pages) show(w http.ResponseWriter, r *http.Request, of page, key string, newLook func() look) {
	t := p.live.topic(key, newLook)
	if !strings.HasSuffix(r.URL.Path, "/") {
		p.live.stream(w, r, t)
		return
	}
	v := p.live.newest(r.Context(), t)
	of.Piece = map[string]template.HTML{}
	for id, html := range v.pieces {
		of.Piece[id] = template.HTML(html) //nolint:gosec // it was drawn by a template, which has escaped it
	}
	for _, id := range v.order {
		of.Ordered = append(of.Ordered, of.Piece[id])
	}
	var b bytes.Buffer
	if err := p.templates.ExecuteTemplate(&b, of.Template, of); err != nil {
		http.Error(w, "The page cannot be drawn: "+explain.Printable(err.Error()), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = b.WriteTo(w) // a reader that has gone needs no page
}

// link is where an HPA's page is.
func (p *Pages) link(namespace, name string) string {
	return p.base() + "hpas/" + url.PathEscape(namespace) + "/" + url.PathEscape(name) + "/"
}

// draw draws a piece of a page.
func (p *Pages) draw(name string, data any) string {
	var b bytes.Buffer
	if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
		b.Reset()
		_ = p.templates.ExecuteTemplate(&b, "broken", fmt.Sprintf("%s cannot be drawn: %s", name, explain.Printable(err.Error())))
	}
	return b.String()
}
