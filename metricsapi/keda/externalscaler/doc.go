// Package externalscaler is the wire between KEDA and an external scaler, generated from
// externalscaler.proto. It knows nothing else.
package externalscaler

//go:generate go -C ../../../bench/tools run ./protogen ../../metricsapi/keda/externalscaler externalscaler.proto
