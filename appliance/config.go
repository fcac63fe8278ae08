package appliance

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/tape/library"
)

// Config is what a daemon starts with. Only Data is needed. Pools, hosts and everything else live in the catalog.
type Config struct {
	Data    string // the appliance's own folder; made if it is not there
	Listen  string // HOST:PORT for agents; port 0 takes a free one; "": every address, port 60305
	Version string
	Log     *slog.Logger   // nil: nothing is logged
	Clock   clock.Clock    // nil: clock.System
	Drivers pools.Registry // nil: Drivers() and tape pools
	// TapeSchemes are further kinds of addresses of tape libraries, by their first word: for tests.
	TapeSchemes map[string]library.Opener
}

// bootFile is the optional file in the data folder that says where to listen; the command line wins over it.
const bootFile = "holdfastd.toml"

// boot is the content of bootFile. A key that is not here is an error: a typing error must not mean a default.
type boot struct {
	Listen string `toml:"listen"`
}

// withDefaults fills in what was left open, from the boot file first.
func (c Config) withDefaults() (Config, error) {
	const op = "read configuration"
	if c.Data == "" {
		return c, holdfast.Errorf(holdfast.Invalid, op, "no data folder").Advise("say with --data where the appliance keeps its things")
	}
	abs, err := filepath.Abs(c.Data)
	if err != nil {
		return c, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	c.Data = abs
	b, err := readBoot(filepath.Join(abs, bootFile))
	if err != nil {
		return c, err
	}
	if c.Listen == "" {
		c.Listen = b.Listen
	}
	if c.Listen == "" {
		c.Listen = net.JoinHostPort("", strconv.Itoa(wire.DefaultPort))
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return c, holdfast.Errorf(holdfast.Invalid, op, "listen address %q: %w", c.Listen, err).Advise("write it as HOST:PORT, an IPv6 host in brackets")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.System
	}
	if c.Version == "" {
		c.Version = "development"
	}
	return c, nil
}

func readBoot(name string) (boot, error) {
	var b boot
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return b, holdfast.Errorf(holdfast.Invalid, "read configuration", "%w", err)
	}
	dec := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return b, holdfast.Errorf(holdfast.Invalid, "read configuration", "%s has a key that is not known:\n%s", name, strict.String()).
				Advise("the one key there is: listen")
		}
		return b, holdfast.Errorf(holdfast.Invalid, "read configuration", "%s: %w", name, err)
	}
	return b, nil
}
