package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// beat is how often an idle event stream carries a comment, so that both ends notice a dead connection.
const beat = 15 * time.Second

func (a *API) registerEvents() {
	s := a.o.Service
	huma.Register(a.huma, huma.Operation{
		OperationID: "get-events",
		Method:      "GET",
		Path:        "/v1/events",
		Summary:     "Events as they happen (server-sent events), continued after Last-Event-ID",
		Responses:   map[string]*huma.Response{"200": {Description: "events", Content: map[string]*huma.MediaType{"text/event-stream": {}}}},
	}, func(ctx context.Context, in *eventsIn) (*huma.StreamResponse, error) {
		after, err := strconv.ParseUint(in.Last, 10, 64)
		switch {
		case in.Last == "":
			if after, err = s.LastEvent(ctx); err != nil {
				return nil, bodyOf(err)
			}
		case err != nil:
			return nil, bodyOf(holdfast.Errorf(holdfast.Invalid, "", "Last-Event-ID %q is not a number", in.Last))
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-store")
			streamEvents(r.Context(), w, a.o.Clock, s.Events(r.Context(), after))
		}}, nil
	})
}

// streamEvents writes events until the source or the peer ends.
func streamEvents(ctx context.Context, w http.ResponseWriter, c clock.Clock, src iter.Seq2[Event, error]) {
	ctx, cancel := context.WithCancel(ctx)
	next := make(chan Event)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e, err := range src {
			if err != nil {
				return
			}
			select {
			case next <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { <-done }()
	defer cancel()
	out := http.NewResponseController(w)
	flush := func(err error) bool { return err == nil && out.Flush() == nil }
	if !flush(writeText(w, ": holdfast\n\n")) {
		return
	}
	for {
		tick, stop := c.After(beat)
		select {
		case e := <-next:
			if !flush(writeEvent(w, e)) {
				stop()
				return
			}
		case <-tick:
			if !flush(writeText(w, ":\n\n")) {
				return
			}
		case <-done:
			stop()
			return
		}
		stop()
	}
}

func writeText(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}

func writeEvent(w io.Writer, e Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Type, b)
	return err
}
