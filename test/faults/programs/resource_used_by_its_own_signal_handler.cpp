// A timer's handler allocates from the resource that it interrupts, as it must not: told, at the latest when it meets
// the middle of a change, instead of a hang.
#include "../support/each_resource.hpp"

#include <sys/time.h>

#include <chrono>
#include <csignal>
#include <vector>

namespace {

std::pmr::memory_resource* heap;

void tick(int) {
    heap->deallocate(heap->allocate(3000), 3000);
}

}  // namespace

int main(int, char** argv) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(400);
    faults::with_resource(argv[1], nullptr, [&](const faults::subject& s) {
        heap = &s.resource;
        std::signal(SIGPROF, tick);
        const itimerval often{{0, 500}, {0, 500}};
        ::setitimer(ITIMER_PROF, &often, nullptr);
        while (std::chrono::steady_clock::now() < end) {
            std::pmr::vector<std::pmr::vector<char>> v(&s.resource);
            for (int i = 0; i < 20; ++i) {
                v.emplace_back(static_cast<std::size_t>(50 + i * 200));
            }
        }
        const itimerval never{};
        ::setitimer(ITIMER_PROF, &never, nullptr);
    });
}
