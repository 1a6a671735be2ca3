// A CUDA runtime for machines without a GPU.
//
// It is preloaded, so that the CUDA build of PyTorch finds one device. Device memory is host memory. Kernels do
// not run: a launch, a copy or a wait is only written to a log. So values are arbitrary, but the log has every
// launch, copy and wait of the program.
//
// Each line of the log is one entry:  KIND NAME NUMBER
//   LAUNCH  mangled kernel name or cublas:FUNCTION, number of thread blocks
//   COPY    HtoD, DtoH, DtoD or sync, bytes          MEMSET  -, bytes
//   WAIT    device, stream or event                  CAPTURE begin or end
//   MATH    mode, the cuBLAS math mode (3 = TF32)    MARK    a name from the caller
//
// It is written for CUDA 13.0. Other major versions may have other signatures.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#undef cudaGetDeviceProperties

// ---------------------------------------------------------------- the log, driven from Python by ctypes

static FILE *out;
static int on;

static void say(const char *kind, const char *name, long number) {
  if (on) fprintf(out, "%s %s %ld\n", kind, name, number);
}
void log_begin(const char *path) {
  if (out) fclose(out);
  out = fopen(path, "w");
  on = out != NULL;
}
void log_mark(const char *name) {
  if (on) fprintf(out, "MARK %s\n", name);
}
void log_end(void) {
  on = 0;
  if (out) fflush(out);
}

// A crash in a library prints where it happened.
static void crash(int signal_number) {
  void *frames[12];
  backtrace_symbols_fd(frames, backtrace(frames, 12), 2);
  _exit(9);
}
void show_crashes(void) {
  signal(SIGFPE, crash);
  signal(SIGSEGV, crash);
}

// ---------------------------------------------------------------- kernels: registered with a name, launched by address

struct Kernel { const void *host; const char *name; };
static struct Kernel *kernels;
static long count, capacity, sorted;

static int compare(const void *a, const void *b) {
  const struct Kernel *x = a, *y = b;
  return x->host < y->host ? -1 : x->host > y->host;
}
static const char *name_of(const void *host) {
  if (sorted != count) {
    qsort(kernels, count, sizeof *kernels, compare);
    sorted = count;
  }
  struct Kernel key = {host, 0};
  struct Kernel *found = bsearch(&key, kernels, count, sizeof *kernels, compare);
  return found ? found->name : "?";
}
void **__cudaRegisterFatBinary(void *p) { static void *dummy[4]; return dummy; }
void __cudaRegisterFatBinaryEnd(void **p) {}
void __cudaUnregisterFatBinary(void **p) {}
void __cudaRegisterVar(void **h, char *a, char *b, const char *c, int d, size_t e, int f, int g) {}
char __cudaInitModule(void **h) { return 1; }
void __cudaRegisterFunction(void **h, const char *host, char *device, const char *name, int limit, void *a, void *b,
                            void *c, void *d, int *w) {
  if (count == capacity) {
    capacity = capacity ? 2 * capacity : 65536;
    kernels = realloc(kernels, capacity * sizeof *kernels);
  }
  kernels[count].host = host;
  kernels[count++].name = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *host) { *k = (cudaKernel_t)host; return 0; }
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
  say("LAUNCH", name_of((const void *)k), (long)g.x * g.y * g.z);
  return 0;
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
  say("LAUNCH", name_of(f), (long)g.x * g.y * g.z);
  return 0;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
  say("LAUNCH", name_of(f), 0);
  return 0;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *p, const void *f) {
  memset(p, 0, sizeof *p);
  p->maxThreadsPerBlock = 1024;
  p->numRegs = 32;
  p->sharedSizeBytes = 4096;
  p->ptxVersion = p->binaryVersion = 90;
  p->maxDynamicSharedSizeBytes = 232448;
  return 0;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) { return 0; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned fl) {
  *n = 2048 / (b ? b : 1);
  if (*n < 1) *n = 1;
  return 0;
}

// ---------------------------------------------------------------- memory: reserved, and never freed

cudaError_t cudaMalloc(void **p, size_t n) {
  *p = mmap(0, (n + 511) / 512 * 512, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *p == MAP_FAILED ? cudaErrorMemoryAllocation : 0;
}
cudaError_t cudaFree(void *p) { return 0; }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096); return 0; }
cudaError_t cudaFreeHost(void *p) { return 0; }
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) {
  say("COPY", "sync", n);
  memcpy(d, s, n);
  return 0;
}
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
  say("COPY", k == cudaMemcpyHostToDevice ? "HtoD" : k == cudaMemcpyDeviceToHost ? "DtoH" : "DtoD", n);
  memcpy(d, s, n);
  return 0;
}
cudaError_t cudaMemset(void *d, int v, size_t n) { say("MEMSET", "-", n); return 0; }
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t st) { say("MEMSET", "-", n); return 0; }
cudaError_t cudaMemGetInfo(size_t *a, size_t *b) { *a = 140ull << 30; *b = 150ull << 30; return 0; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  a->devicePointer = (void *)p;
  return 0;
}

// ---------------------------------------------------------------- one device; CUDA_STAND_IN_SM is its architecture

static int sm(void) { return getenv("CUDA_STAND_IN_SM") ? atoi(getenv("CUDA_STAND_IN_SM")) : 90; }
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return 0; }
cudaError_t cudaGetDevice(int *n) { *n = 0; return 0; }
cudaError_t cudaSetDevice(int n) { return 0; }
cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no GPU (stand-in)");
  p->major = sm() / 10;
  p->minor = sm() % 10;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->totalGlobalMem = 150ull << 30;
  p->l2CacheSize = 60 << 20;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  return 0;
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = sm() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = sm() % 10; break;
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    default: *v = 0;
  }
  return 0;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *a, int *b) { *a = 0; *b = -5; return 0; }
cudaError_t cudaDeviceCanAccessPeer(int *a, int b, int c) { *a = 0; return 0; }
cudaError_t cudaGetLastError(void) { return 0; }
cudaError_t cudaPeekAtLastError(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *status) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  *f = driver ? dlsym(driver, name) : 0;
  if (status) *status = *f ? 0 : 1;
  return 0;
}

// ---------------------------------------------------------------- streams, events, graphs

static int capturing;
cudaError_t cudaDeviceSynchronize(void) { say("WAIT", "device", 0); return 0; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { say("WAIT", "stream", 0); return 0; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { say("WAIT", "event", 0); return 0; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) {
  static long n = 16;
  *s = (cudaStream_t)(n += 16);
  return 0;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) {
  static long n = 4096;
  *s = (cudaStream_t)(n += 16);
  return 0;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *p) { *p = capturing; return 0; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *p, unsigned long long *id,
                                     cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
  *p = capturing;
  if (id) *id = capturing;
  if (n) *n = 0;
  if (g) *g = 0;
  return 0;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
  capturing = 1;
  say("CAPTURE", "begin", m);
  return 0;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
  capturing = 0;
  say("CAPTURE", "end", 0);
  if (g) *g = (cudaGraph_t)4096;
  return 0;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
  *e = (cudaGraphExec_t)8192;
  return 0;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { say("LAUNCH", "graph", 0); return 0; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return 0; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { return 0; }
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *n, size_t *k) { *k = 1; return 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) {
  static long n = 16;
  *e = (cudaEvent_t)(n += 16);
  return 0;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return 0; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return 0; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return 0; }
cudaError_t cudaEventElapsedTime(float *f, cudaEvent_t a, cudaEvent_t b) { *f = 1; return 0; }

// ---------------------------------------------------------------- cuBLAS: one call is one launch in the log

#define CALL(name) int name() { say("LAUNCH", "cublas:" #name, 0); return 0; }
#define NOTHING(name) int name() { return 0; }

int cublasCreate_v2(void **h) { *h = malloc(64); return 0; }
int cublasSetMathMode(void *h, int mode) { say("MATH", "mode", mode); return 0; }
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
NOTHING(cublasDestroy_v2)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasSetSmCountTarget)
CALL(cublasSgemm_v2)
CALL(cublasDgemm_v2)
CALL(cublasGemmEx)
CALL(cublasSgemmEx)
CALL(cublasGemmStridedBatchedEx)
CALL(cublasSgemmStridedBatched)
CALL(cublasDgemmStridedBatched)
CALL(cublasLtMatmul)
CALL(cublasSgemv_v2)
CALL(cublasSdot_v2)
int cublasLtMatmulDescCreate(void **p) { *p = malloc(64); return 0; }
int cublasLtMatmulPreferenceCreate(void **p) { *p = malloc(64); return 0; }
int cublasLtMatrixLayoutCreate(void **p) { *p = malloc(64); return 0; }
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
int cublasLtMatmulAlgoGetHeuristic(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int wanted, char *results,
                                   int *n) {
  memset(results, 0, 96);
  *n = 1;
  return 0;
}
