/* The memory calls of the CUDA driver over the host's memory, strict about what they are told: NVIDIA's own header says
 * what the arguments look like, and `mprotect` that nothing is touched without memory behind it. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <sys/mman.h>

#define GRANULE (2ul << 20)
#define CAPACITY (64ul << 20)
#define EXPECT(condition)                                     \
    if (!(condition)) {                                       \
        fprintf(stderr, "%s: not %s\n", __func__, #condition); \
        return CUDA_ERROR_INVALID_VALUE;                      \
    }

static size_t reserved, mapped, handles;

static int is_ours(const CUmemAllocationProp *given) {
    return given->type == CU_MEM_ALLOCATION_TYPE_PINNED && given->requestedHandleTypes == CU_MEM_HANDLE_TYPE_NONE &&
           given->location.type == CU_MEM_LOCATION_TYPE_DEVICE && given->location.id == 0;
}

static CUresult map_nothing(CUdeviceptr start, size_t size) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    return mmap((void *)start, size, PROT_NONE, flags, -1, 0) == MAP_FAILED ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "another";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **words) {
    *words = "invalid argument";
    return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t *size, const CUmemAllocationProp *given,
                                       CUmemAllocationGranularity_flags option) {
    EXPECT(is_ours(given) && option == CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    *size = GRANULE;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *start, size_t size, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
    EXPECT(size && size % GRANULE == 0 && alignment == 0 && hint == 0 && flags == 0);
    void *found = mmap(0, size + GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *start = ((CUdeviceptr)found + GRANULE - 1) / GRANULE * GRANULE;
    reserved += size;
    return found == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr start, size_t size) {
    EXPECT(reserved >= size);
    reserved -= size;
    return map_nothing(start, size);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *given,
                     unsigned long long flags) {
    EXPECT(size && size % GRANULE == 0 && is_ours(given) && flags == 0);
    if (mapped + size > CAPACITY) return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = size;
    handles++;
    return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    EXPECT(handles-- > 0);
    return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr start, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    EXPECT(start % GRANULE == 0 && size == handle && offset == 0 && flags == 0);
    mapped += size;
    return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr start, size_t size, const CUmemAccessDesc *given, size_t count) {
    EXPECT(count == 1 && given->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    EXPECT(given->location.type == CU_MEM_LOCATION_TYPE_DEVICE && given->location.id == 0);
    return mprotect((void *)start, size, PROT_READ | PROT_WRITE) ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr start, size_t size) {
    EXPECT(mapped >= size);
    mapped -= size;
    return map_nothing(start, size);
}

CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *found) {
    *function = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), symbol);
    if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

void test_state(size_t *state) {
    state[0] = reserved;
    state[1] = mapped;
    state[2] = handles;
}
