package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// parseSize reads a number of bytes with an optional unit: K, M, G or T, each 1024 of the one before, with or without "iB" or "B".
func parseSize(s string) (int64, error) {
	num := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(s)), "B"), "I")
	shift := 0
	if num != "" {
		if i := strings.IndexByte("KMGT", num[len(num)-1]); i >= 0 {
			shift, num = 10*(i+1), num[:len(num)-1]
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, holdfast.Errorf(holdfast.Invalid, "", "%q is no size", s).Advise("for example 80M or 2G")
	}
	return n << shift, nil
}

// sizeText shows bytes in IEC units.
func sizeText(n int64) string {
	const units = "KMGTPE"
	v, u := float64(n), -1
	for ; v >= 1024 && u < len(units)-1; u++ {
		v /= 1024
	}
	if u < 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.4g %ciB", v, units[u])
}
