// Writes into memory that is unmapped: the process must end by it, whatever is mapped there meanwhile.
// Arguments: vector, arena (the block went away with its owner), mapper (another thread maps and unmaps all the time),
// filler (the report's handler maps memory at the very address), overflow (of a thread's stack, without a guard page).

#include <pmr_debug/pmr_debug.hpp>

#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory_resource>
#include <string_view>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t bytes = 200'000;

__attribute__((noinline)) void late_write(char* p) {
    asm volatile("" : "+r"(p));
    *static_cast<volatile char*>(p) = 1;
}

void* map_somewhere(std::size_t n) {
    return ::mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

struct filler final : pmr_debug::report_handler {
    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        std::fputs("told\n", stderr);
        const std::uintptr_t page = reinterpret_cast<std::uintptr_t>(r.pointer) & ~std::uintptr_t{4095};
        ::mmap(reinterpret_cast<void*>(page), 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
               0);
        return pmr_debug::action::carry_on;
    }
};

volatile bool for_ever = true;

__attribute__((noinline)) int deeper(int depth) {
    volatile char frame[512];
    frame[0] = static_cast<char>(depth);
    const int result = for_ever ? deeper(depth + 1) : 0;
    return result + frame[0];
}

void overflow() {
    constexpr std::size_t stack = 64 << 10;
    auto* const range = static_cast<char*>(map_somewhere(stack * 2));
    ::munmap(range, stack);
    pthread_attr_t how;
    pthread_attr_init(&how);
    pthread_attr_setstack(&how, range + stack, stack);
    pthread_t t{};
    pthread_create(
        &t, &how,
        [](void*) -> void* {
            pmr_debug::fault_handler::prepare_thread();
            deeper(0);
            return nullptr;
        },
        nullptr);
    pthread_join(t, nullptr);
}

}  // namespace

int main(int, char** argv) {
    const std::string_view way = argv[1];
    filler fills;
    pmr_debug::fault_handler_options options;
    options.handler = way == "filler" ? &fills : nullptr;
    const pmr_debug::fault_handler faults(options);
    pmr_debug::tracking_resource memory({.name = "memory"});
    std::atomic<bool> go_on{way == "mapper"};
    std::thread mapper([&] {
        while (go_on) {
            void* kept[64];
            for (void*& p : kept) {
                p = map_somewhere(4096);
            }
            for (void* const p : kept) {
                ::munmap(p, 4096);
            }
        }
    });
    if (way == "overflow") {
        overflow();
    }
    char* late = nullptr;
    if (way == "arena") {
        std::pmr::monotonic_buffer_resource arena(&memory);
        late = static_cast<char*>(arena.allocate(bytes));
    } else {
        std::pmr::vector<char> v(bytes, &memory);
        late = v.data();
    }
    late_write(late + 100);
    std::puts("went on");
    go_on = false;
    mapper.join();
}
