package main

import (
	"fmt"
	"io"
	"net/http"
	"time"
)

// prometheus plays one, which answers every query with 7. Each question takes a connection of its
// own, so that what the network lets pass shows at each.
func prometheus(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("prometheus takes ADDRESS, not %q", args)
	}
	api := http.NewServeMux()
	api.HandleFunc("/api/v1/query", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[0,"7"]}]}}`)
	})
	server := &http.Server{Addr: args[0], Handler: api, ReadHeaderTimeout: time.Minute}
	server.SetKeepAlivesEnabled(false)
	return server.ListenAndServe()
}
