// Capturing and resolving take nothing from the program's heap, not even at first use. So this must be the first thing
// that this program does with traces: one test, in a program of its own.

#include <pmr_debug/stack_trace.hpp>

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define WITH_SANITIZER 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WITH_SANITIZER 1
#endif

namespace {

std::atomic<int> heap_calls{0};

}  // namespace

#if defined(WITH_SANITIZER)
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, std::size_t),
                                                         void (*)(const volatile void*));
#else
// The C library's own, under the names it has for them; operator new ends up here as well.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);

void* malloc(std::size_t n) {
    ++heap_calls;
    return __libc_malloc(n);
}
void* calloc(std::size_t n, std::size_t m) {
    ++heap_calls;
    return __libc_calloc(n, m);
}
void* realloc(void* p, std::size_t n) {
    ++heap_calls;
    return __libc_realloc(p, n);
}
void* aligned_alloc(std::size_t a, std::size_t n) {
    ++heap_calls;
    return __libc_memalign(a, n);
}
void free(void* p) {
    heap_calls += p != nullptr;
    __libc_free(p);
}
}
#endif

namespace {

pmr_debug::trace_id id = pmr_debug::trace_id::none;

__attribute__((noinline)) int compare(const void*, const void*) {
    id = pmr_debug::capture_trace(16);
    asm volatile("");
    return 0;
}

TEST(traces, take_nothing_from_the_heap) {
#if defined(WITH_SANITIZER)
    __sanitizer_install_malloc_and_free_hooks([](const volatile void*, std::size_t) { ++heap_calls; },
                                              [](const volatile void*) { ++heap_calls; });
#endif
    void* volatile p = std::malloc(1);
    std::free(p);
    ASSERT_GE(heap_calls, 2) << "the counter does not count";

    int before = heap_calls;
    id = pmr_debug::capture_trace(16);
    EXPECT_EQ(heap_calls, before);
    EXPECT_NE(id, pmr_debug::trace_id::none);

    int values[2] = {1, 2};
    before = heap_calls;
    std::qsort(values, 2, sizeof values[0], compare);  // small enough to sort on the stack
    EXPECT_EQ(heap_calls, before);

    unsigned frames = 0;
    before = heap_calls;
    pmr_debug::resolve(
        id, [](const pmr_debug::resolved_frame&, void* n) noexcept { ++*static_cast<unsigned*>(n); }, &frames);
    EXPECT_EQ(heap_calls, before);
    EXPECT_GE(frames, pmr_debug::view(id).frames.size());
}

}  // namespace
