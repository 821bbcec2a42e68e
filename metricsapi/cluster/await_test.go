package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func TestAwaitAPI(t *testing.T) {
	refused := errors.New("dial tcp 127.0.0.1:6443: connect: connection refused")
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, "extension-apiserver-authentication", errors.New("no rule"))
	tests := map[string]struct {
		err   error         // of the API server
		until time.Duration // from then on it answers
		want  time.Duration // when the wait ends
		told  bool
	}{
		"the API server answers":                        {nil, 0, 0, false},
		"it is down for a minute":                       {refused, time.Minute, time.Minute, true},
		"it is starting and does not know its rules":    {forbidden, 3 * time.Second, 3 * time.Second, true},
		"it is overloaded":                              {apierrors.NewTooManyRequests("later", 1), 30 * time.Second, 30 * time.Second, true},
		"it says no and goes on saying it":              {forbidden, time.Hour, 61 * time.Second, true},
		"somebody else answers, with a strange name":    {&tls.CertificateVerificationError{Err: errors.New("unknown authority")}, time.Hour, 0, false},
		"it is down until we are told to end, long ago": {refused, 2 * time.Hour, time.Hour, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, log, began := fake.NewClientset(), &strings.Builder{}, time.Now()
				client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
					if time.Since(began) < tc.until {
						return true, nil, tc.err
					}
					return true, nil, nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				err := Await(ctx, client, slog.New(slog.NewTextHandler(log, nil)))
				if (err != nil) != (tc.want == time.Hour) {
					t.Errorf("got error %v", err)
				}
				if got := time.Since(began); got != tc.want {
					t.Errorf("waited %s, want %s", got, tc.want)
				}
				if n := strings.Count(log.String(), "waiting for it"); n > 1 || (n == 1) != tc.told {
					t.Errorf("told %d times", n)
				}
			})
		})
	}
}
