// Package meshca asks the certificate authority of an Istio mesh for a certificate of the mesh, and
// keeps one that is new.
//
// The authority is istiod, or istio-csr in its place:
// istio.v1.auth.IstioCertificateService/CreateCertificate, as every sidecar's agent calls it. Who
// asks is told by a Kubernetes token of the audience istio-ca, and the certificate names its
// namespace and service account ([Client.Current]). Root and token are read anew at each request
// and a connection is made for it: either may have changed. Half of a certificate's life before its
// end another one is asked for, and when the root's file changes, at once.
//
// The package knows gRPC, X.509 and the two messages, which are written by hand (ask.go): three
// fields are not worth a dependency. It must not know what the certificate is used for, nor the
// store. The protocol is that of istio/api security/v1alpha1/ca.proto, the same from Istio 1.24 to
// 1.31.
package meshca
