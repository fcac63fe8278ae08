package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// socketName is the daemon's unix socket in its data folder.
const socketName = "holdfastd.sock"

// http returns a client whose every request goes to the daemon's socket.
func (a *app) http() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a command makes few requests and ends
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(a.data, socketName))
		},
	}}
}

// open makes one request and returns the answer if it is a success.
func (a *app) open(ctx context.Context, method, path string, in any) (*http.Response, error) {
	return a.send(ctx, a.http(), method, path, in)
}

// send is open by a client that is there already.
func (a *app) send(ctx context.Context, c *http.Client, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, holdfast.Errorf(holdfast.Internal, "ask daemon", "%w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfastd"+path, body)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, "ask daemon", "%w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, a.unreachable(ctx, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close() // an error answer was read as far as it matters
	var e api.ErrorBody
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Failure.Message == "" {
		return nil, holdfast.Errorf(holdfast.Internal, "ask daemon", "it answered %s", resp.Status)
	}
	return nil, e.Failure.Err()
}

// call makes one request and decodes the answer.
func (a *app) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := a.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // read to its end below
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return holdfast.Errorf(holdfast.Offline, "ask daemon", "the answer broke off: %w", err).Advise("is holdfastd still running? see its log")
	}
	return nil
}

// unreachable says what is wrong when the socket does not answer.
func (a *app) unreachable(ctx context.Context, err error) error {
	sock := filepath.Join(a.data, socketName)
	switch _, serr := os.Stat(sock); {
	case ctx.Err() != nil:
		return holdfast.Errorf(holdfast.Cancelled, "ask daemon", "interrupted")
	case errors.Is(err, fs.ErrPermission):
		return holdfast.Errorf(holdfast.Permission, "ask daemon", "you may not use %s", sock).Advise("run the command as the user that runs holdfastd, usually root")
	case errors.Is(serr, fs.ErrNotExist):
		return holdfast.Errorf(holdfast.Offline, "ask daemon", "no daemon uses the folder %s", a.data).
			Advise("start it with 'holdfastd --data %s', or say with --data or HOLDFAST_DATA where its folder is", a.data)
	}
	return holdfast.Errorf(holdfast.Offline, "ask daemon", "%w", err).Advise("is holdfastd running? start it with 'holdfastd --data %s'", a.data)
}
