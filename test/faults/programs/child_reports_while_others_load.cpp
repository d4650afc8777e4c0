// The process forks while other threads load and unload a library, named by the argument, and throw exceptions. Each
// child makes an error, which is told with names.
#include <pmr_debug/pmr_debug.hpp>

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

int main(int, char** argv) {
    pmr_debug::text_handler quiet({.descriptor = ::open("/dev/null", O_WRONLY), .abort_on_error = false});
    pmr_debug::general_purpose_resource heap({.name = "heap", .handler = &quiet});
    std::atomic<bool> stop{false};
    std::thread loads([&] {
        while (!stop) {
            if (void* const library = ::dlopen(argv[1], RTLD_NOW); library != nullptr) {
                ::dlclose(library);
            }
        }
    });
    std::thread throws([&] {
        while (!stop) {
            try {
                throw 1;
            } catch (int) {
            }
        }
    });
    constexpr int rounds = 15;
    int bad = 0;
    for (int i = 0; i < rounds && bad < 3; ++i) {
        const pid_t child = ::fork();
        if (child == 0) {
            ::alarm(10);
            void* const p = heap.allocate(8);
            heap.deallocate(p, 8);
            heap.deallocate(p, 8);
            ::_exit(0);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        bad += status != 0 ? 1 : 0;
    }
    stop = true;
    loads.join();
    throws.join();
    std::printf("%d children hung or died\n", bad);
    return bad != 0;
}
