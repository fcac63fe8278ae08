package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// A poolFlag adds flags to pool create and pool import. What it returns adds to the config that the daemon's driver gets, and may print what
// the admin must know before the pool is made.
type poolFlag func(a *app, c *cobra.Command) func(kind string, config map[string]any) error

// poolFlags are the groups of flags that describe a pool.
func poolFlags() []poolFlag { return []poolFlag{placeFlags, bucketFlags, tapeFlags, encryptFlags} }

func (a *app) poolCreate() *cobra.Command {
	c := &cobra.Command{
		Use:   "create NAME --kind KIND (--path DIR... | --endpoint URL --bucket NAME ... | --library ADDRESS)",
		Short: "Create a pool",
		Long: "Create a pool: dedup (chunks shared between all sets), standard (each set in files of its own), both in folders of the appliance,\n" +
			"object (dedup in an S3 bucket), or tape (media sets of cartridges in a library; blank ones are taken). Keys are given as files that the daemon can read; they are never shown.",
		Example: "  holdfast pool create main --kind dedup --path /srv/pool\n" +
			"  holdfast pool create plain --kind standard --path /disk1/pool --path /disk2/pool --quota /disk1/pool=2T\n" +
			"  holdfast pool create safe --kind dedup --path /d1 --path /d2 --path /d3 --path /d4 --path /d5 --path /d6 --stripe 4+2\n" +
			"  holdfast pool create cloud --kind object --endpoint https://s3.example.com --bucket backups --access-key-file ak --secret-key-file sk\n" +
			"  holdfast pool create vault --kind tape --library iscsi://10.0.0.9/iqn.2026-01.example:library --barcodes HF --allocation monthly --retain 365d",
		Args: cobra.ExactArgs(1),
	}
	spec := a.poolSpec(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := spec(args[0])
		if err != nil {
			return err
		}
		var x api.Pool
		if err := a.call(c.Context(), "POST", "/v1/pools", s, &x); err != nil {
			return err
		}
		return a.print(x, func(p *printer) {
			p.line("Pool %s is ready.", cli.Clean(x.Name))
			p.line("next: holdfast host enroll NAME, then holdfast backup VM --pool %s", cli.Clean(x.Name))
		})
	}
	return c
}

func (a *app) poolImport() *cobra.Command {
	c := &cobra.Command{
		Use:   "import NAME --kind KIND (--path DIR... | --endpoint URL --bucket NAME ... | --library ADDRESS)",
		Short: "Take over a pool that is already there, and list its sets",
		Long:  "Take over a pool that another appliance made, or whose catalog was lost. The pool keeps its id; its sets are listed in the catalog.",
		Args:  cobra.ExactArgs(1),
	}
	spec := a.poolSpec(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := spec(args[0])
		if err != nil {
			return err
		}
		var x api.Imported
		if err := a.call(c.Context(), "POST", "/v1/pools/import", s, &x); err != nil {
			return err
		}
		var r api.Rebuilt
		if x.Run, err = a.await(c.Context(), x.Run, &r); err != nil {
			return err
		}
		if err := a.print(x, func(p *printer) {
			p.line("Pool %s is taken over; %s listed.", cli.Clean(x.Pool.Name), plural(r.Sets, "set"))
			rebuiltHolds(p, r)
			for _, e := range r.Errors {
				p.row("UNREADABLE", e)
			}
		}); err != nil {
			return err
		}
		return rebuildError(r)
	}
	return c
}

// poolSpec adds the flags that describe a pool, and returns what makes a spec out of them.
func (a *app) poolSpec(c *cobra.Command) func(name string) (api.PoolSpec, error) {
	kind := c.Flags().String("kind", "dedup", "kind of pool: dedup, standard, object or tape")
	var groups []func(string, map[string]any) error
	for _, f := range poolFlags() {
		groups = append(groups, f(a, c))
	}
	return func(name string) (api.PoolSpec, error) {
		s := api.PoolSpec{Name: name, Kind: *kind, Config: map[string]any{}}
		for _, f := range groups {
			if err := f(*kind, s.Config); err != nil {
				return s, err
			}
		}
		return s, nil
	}
}

// kindStandard, kindObject and kindTape are kinds whose config is made differently; every other kind takes the flags as they are.
const (
	kindStandard = "standard"
	kindObject   = "object"
	kindTape     = "tape"
)

// placeFlags describe pools in folders.
func placeFlags(_ *app, c *cobra.Command) func(string, map[string]any) error {
	f := c.Flags()
	paths := f.StringArray("path", nil, "folder on the appliance; several for a standard pool, or with --stripe")
	stripe := f.String("stripe", "", "spread every object over several paths so that some may be lost, as data+parity: 4+2")
	quotas := f.StringArray("quota", nil, "bytes that the pool may take (DIR=SIZE: on one path of a standard pool), for example 2T")
	chunking := f.String("chunking", "", "how disks are cut: adaptive (default), variable, fixed-64K, fixed-128K, fixed-256K, fixed-512K")
	return func(kind string, config map[string]any) error {
		if len(*paths) == 0 && kind != kindObject && kind != kindTape {
			return holdfast.Errorf(holdfast.Invalid, "", "no --path: a pool of kind %q needs a folder", kind).Advise("'%s --help' shows how to use it", c.CommandPath())
		}
		abs, err := absolute(*paths)
		if err != nil {
			return err
		}
		total, each, err := parseQuotas(*quotas)
		if err != nil {
			return err
		}
		if total > 0 && kind != kindObject || len(each) > 0 && kind != kindStandard {
			return holdfast.Errorf(holdfast.Invalid, "", "this quota is not for a pool of kind %q", kind).
				Advise("give the whole pool a quota after it is made: holdfast pool set NAME --quota SIZE")
		}
		switch {
		case kind == kindStandard:
			config["paths"] = standardPaths(abs, each)
		case len(abs) == 1 && *stripe == "":
			config["path"] = abs[0]
		case len(abs) > 0:
			config["paths"] = abs
		}
		for k, v := range map[string]string{"stripe": *stripe, "chunking": *chunking} {
			if v != "" {
				config[k] = v
			}
		}
		if total > 0 {
			config["quota"] = total
		}
		for dir := range each {
			return holdfast.Errorf(holdfast.Invalid, "", "the quota of %s is of no path of the pool", dir).Advise("write the folder as after --path")
		}
		return nil
	}
}

// absolute makes folders and files absolute: the daemon has another working folder.
func absolute(paths []string) ([]string, error) {
	out := make([]string, len(paths))
	for i, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil || p == "" {
			return nil, holdfast.Errorf(holdfast.Invalid, "", "the path %q cannot be used", p).Advise("write it from / on")
		}
		out[i] = abs
	}
	return out, nil
}

// standardPaths gives each path its quota, and takes the quota out of the map.
func standardPaths(abs []string, quotas map[string]int64) []map[string]any {
	out := make([]map[string]any, len(abs))
	for i, p := range abs {
		out[i] = map[string]any{"path": p}
		if n, ok := quotas[p]; ok {
			out[i]["quota"] = n
			delete(quotas, p)
		}
	}
	return out
}

// parseQuotas reads SIZE and DIR=SIZE. "none" and 0 mean no quota.
func parseQuotas(list []string) (total int64, each map[string]int64, err error) {
	each = map[string]int64{}
	for _, q := range list {
		dir, text, of := cutLast(q, "=")
		if !of {
			dir, text = "", q
		}
		n := int64(0)
		if text != "none" {
			if n, err = cli.ParseSize(text); err != nil {
				return 0, nil, err
			}
		}
		if !of {
			total = n
			continue
		}
		abs, err := absolute([]string{dir})
		if err != nil {
			return 0, nil, err
		}
		each[abs[0]] = n
	}
	return total, each, nil
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// tapeFlags describe pools on tape.
func tapeFlags(_ *app, c *cobra.Command) func(string, map[string]any) error {
	f := c.Flags()
	address := f.String("library", "", "tape: address of the library: iscsi://HOST[:PORT]/TARGET, sg:/dev/sgN, sg:serial:NUMBER")
	text := map[string]*string{
		"name":       f.String("label-name", "", "tape: the pool's name on labels, for people who find a cartridge"),
		"barcodes":   f.String("barcodes", "", "tape: take only cartridges whose bar codes begin so"),
		"allocation": f.String("allocation", "", "tape: when a new media set begins: continue, always, daily, weekly (default), monthly"),
		"retain":     f.String("retain", "", "tape: keep a media set so long from when it is closed: 30d, 720h"),
	}
	spool := f.String("spool", "", "tape: bytes that are collected on the appliance's disk and then written in one go (default 64G)")
	return func(kind string, config map[string]any) error {
		if kind == kindTape && *address == "" {
			return holdfast.Errorf(holdfast.Invalid, "", "a pool of kind tape needs --library").Advise("list what can be reached: holdfast tape library scan ADDRESS")
		}
		if *address != "" {
			config["library"] = *address
		}
		for k, v := range text {
			if *v != "" {
				config[k] = *v
			}
		}
		if *spool != "" {
			n, err := cli.ParseSize(*spool)
			if err != nil {
				return err
			}
			config["spool"] = n
		}
		return nil
	}
}

// bucketFlags describe pools in buckets.
func bucketFlags(_ *app, c *cobra.Command) func(string, map[string]any) error {
	f := c.Flags()
	endpoint := f.String("endpoint", "", "object: URL of the S3 server, https://HOST[:PORT]")
	buckets := f.StringArray("bucket", nil, "object: bucket; several with --stripe")
	text := map[string]*string{
		"prefix":        f.String("prefix", "", "object: folder in the bucket that the pool lives in"),
		"region":        f.String("region", "", "object: region (default: asked of the server)"),
		"storage_class": f.String("storage-class", "", "object: storage class of what is written"),
		"object_lock":   f.String("object-lock", "", "object: keep every new set at least so long: compliance:30d, governance:12h"),
		"take_over":     f.String("take-over", "", "object: name of the appliance that had the pool before, whose lease has run out"),
	}
	files := map[string]*string{
		"access_key_file": f.String("access-key-file", "", "object: file on the appliance with the access key"),
		"secret_key_file": f.String("secret-key-file", "", "object: file on the appliance with the secret key"),
		"ca_file":         f.String("ca", "", "object: file with certificates to trust (PEM)"),
	}
	style := f.String("bucket-style", "", "object: how buckets are addressed: path or host (default: by the endpoint)")
	return func(kind string, config map[string]any) error {
		if kind == kindObject && (*endpoint == "" || len(*buckets) == 0) {
			return holdfast.Errorf(holdfast.Invalid, "", "a pool of kind object needs --endpoint and --bucket").Advise("'%s --help' shows how to use it", c.CommandPath())
		}
		if *endpoint != "" {
			config["endpoint"] = *endpoint
		}
		switch {
		case len(*buckets) == 1:
			config["bucket"] = (*buckets)[0]
		case len(*buckets) > 1:
			config["buckets"] = *buckets
		}
		for k, v := range text {
			if *v != "" {
				config[k] = *v
			}
		}
		for k, v := range files {
			if *v == "" {
				continue
			}
			abs, err := absolute([]string{*v})
			if err != nil {
				return err
			}
			config[k] = abs[0]
		}
		switch *style {
		case "":
		case "path", "host":
			config["path_style"] = *style == "path"
		default:
			return holdfast.Errorf(holdfast.Invalid, "", "no bucket style %q", *style).Advise("use path or host")
		}
		return nil
	}
}
