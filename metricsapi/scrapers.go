package metricsapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// scrapers are those who read /metrics. While the API server is away it can say of nobody who he is
// and what he may, and it is just then that meshpulse's metrics tell what it does not hear any
// more. So whom it let in to them within the last hour is let in to them, and to nothing else,
// until it answers again. They are known by a hash of what they showed.
type scrapers struct {
	now func() time.Time

	mu      sync.Mutex
	allowed map[string]time.Time               // when a user was last let in
	known   map[[sha256.Size]byte]knownScraper // of users who were
}

type knownScraper struct {
	is *authenticator.Response
	at time.Time
}

const (
	metricsPath = "/metrics"
	// scraperKnownFor is how long an API server's last word on a scraper stands while it says
	// nothing: longer than what wakes somebody, and no longer than a token lives as a rule.
	scraperKnownFor = time.Hour
	// maxScrapers bounds what is kept of them; those who were not let in take nothing of it.
	maxScrapers = 100
	// scraperAskFor is how long the API server is asked who a known scraper is, and as long what he
	// may: both end within the request's time.
	scraperAskFor = time.Second
)

func newScrapers(now func() time.Time) *scrapers {
	return &scrapers{now: now, allowed: map[string]time.Time{}, known: map[[sha256.Size]byte]knownScraper{}}
}

// authenticator is one that knows scrapers while the API server does not answer.
func (s *scrapers) authenticator(asked authenticator.Request) authenticator.Request {
	return authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		shown := r.Header.Get("Authorization")
		if r.URL.Path != metricsPath || shown == "" { // a certificate is looked at here
			return asked.AuthenticateRequest(r)
		}
		key := sha256.Sum256([]byte(shown))
		was := s.recall(key)
		if was != nil {
			ctx, cancel := context.WithTimeout(r.Context(), scraperAskFor)
			defer cancel()
			r = r.WithContext(ctx)
		}
		is, ok, err := asked.AuthenticateRequest(r)
		if was != nil && unanswered(err) {
			return was, true, nil
		}
		s.note(key, is, ok && err == nil)
		return is, ok, err
	})
}

// authorizer is one that lets scrapers in while the API server does not answer.
func (s *scrapers) authorizer(asked authorizer.Authorizer) authorizer.Authorizer {
	return authorizer.AuthorizerFunc(func(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
		if a.IsResourceRequest() || a.GetPath() != metricsPath || a.GetVerb() != "get" || a.GetUser() == nil {
			return asked.Authorize(ctx, a)
		}
		user := a.GetUser().GetName()
		was := s.let(user)
		if was {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, scraperAskFor)
			defer cancel()
		}
		decision, reason, err := asked.Authorize(ctx, a)
		if was && decision != authorizer.DecisionAllow && unanswered(err) {
			return authorizer.DecisionAllow, "the API server let " + user + " in before, and does not answer", nil
		}
		s.decided(user, decision == authorizer.DecisionAllow)
		return decision, reason, err
	})
}

// unanswered says whether the API server did not answer: an answer, whatever it says, is no reason
// to go by an earlier one.
func unanswered(err error) bool {
	if all := utilerrors.Aggregate(nil); errors.As(err, &all) {
		for _, one := range all.Errors() {
			if unanswered(one) {
				return true
			}
		}
		return false
	}
	broken := (*url.Error)(nil)
	return errors.As(err, &broken) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsInternalError(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err)
}

// recall is who showed this within the last hour, nil if nobody did who was let in.
func (s *scrapers) recall(key [sha256.Size]byte) *authenticator.Response {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.known[key]; k.is != nil && !s.past(k.at) {
		return k.is
	}
	return nil
}

// note keeps who showed this, if he was let in before, or forgets him.
func (s *scrapers) note(key [sha256.Size]byte, is *authenticator.Response, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok {
		delete(s.known, key)
		return
	}
	if _, allowed := s.allowed[is.User.GetName()]; !allowed {
		return
	}
	if s.known[key].is == nil && len(s.known) >= maxScrapers {
		maps.DeleteFunc(s.known, func(_ [sha256.Size]byte, k knownScraper) bool { return s.past(k.at) })
	}
	if s.known[key].is != nil || len(s.known) < maxScrapers {
		s.known[key] = knownScraper{is, s.now()}
	}
}

// past says whether a time is too long ago to go by.
func (s *scrapers) past(at time.Time) bool { return s.now().Sub(at) >= scraperKnownFor }

// let says whether a user was let in within the last hour.
func (s *scrapers) let(user string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.allowed[user]
	return ok && !s.past(at)
}

// decided notes what the API server says of a user.
func (s *scrapers) decided(user string, in bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !in {
		delete(s.allowed, user)
		return
	}
	if _, ok := s.allowed[user]; !ok && len(s.allowed) >= maxScrapers {
		maps.DeleteFunc(s.allowed, func(_ string, at time.Time) bool { return s.past(at) })
	}
	if _, ok := s.allowed[user]; ok || len(s.allowed) < maxScrapers {
		s.allowed[user] = s.now()
	}
}
