// Resources that live and die, with a leak, in a thread of the smallest size. Argument: which.

#include <pmr_debug/pmr_debug.hpp>

#include <limits.h>
#include <pthread.h>

#include <cstdio>
#include <string_view>

namespace {

std::string_view which;

template <class Resource>
void live_and_die() {
    Resource resource({.name = "short"});
    void* const never_freed = resource.allocate(100);
    static_cast<void>(never_freed);
}

void* work(void*) {
    if (which == "general") {
        live_and_die<pmr_debug::general_purpose_resource>();
    } else if (which == "tracking") {
        live_and_die<pmr_debug::tracking_resource>();
    } else if (which == "canary") {
        live_and_die<pmr_debug::canary_resource>();
    } else if (which == "fence") {
        live_and_die<pmr_debug::end_of_page_resource>();
    } else {
        live_and_die<pmr_debug::page_resource>();
    }
    return nullptr;
}

}  // namespace

int main(int, char** argv) {
    which = argv[1];
    pthread_attr_t how;
    pthread_attr_init(&how);
    pthread_attr_setstacksize(&how, static_cast<std::size_t>(PTHREAD_STACK_MIN));
    pthread_t t{};
    if (pthread_create(&t, &how, work, nullptr) == 0) {
        pthread_join(t, nullptr);
    }
    std::puts("lived");
}
